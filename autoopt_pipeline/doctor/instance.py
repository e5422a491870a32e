"""Dagster: that the code location loads, and the instance with its daemons and sensors.

Heartbeats and the states of sensors are not among Dagster's public calls; a test holds them to a real instance.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from autoopt_pipeline.doctor.findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    import dagster as dg
    from dagster._utils.error import SerializableErrorInfo

SENSORS = ("auto_optimization_sensor", "tenant_partitions_sensor", "promotion_watch_sensor")


def code_location() -> Iterator[Finding]:
    import dagster as dg

    from autoopt_pipeline.definitions import defs

    dg.Definitions.validate_loadable(defs)
    yield ok(f"autoopt_pipeline.definitions loads with Dagster {dg.__version__}")


def dagster_instance(home: Path | None) -> Iterator[Finding]:
    if home is None:
        yield warn("there is no Dagster instance here", "set DAGSTER_HOME, or go to the folder with dagster.yaml")
        return
    from autoopt_pipeline.orchestration.instance import open_instance

    with open_instance(home) as instance:
        storage = type(instance.run_storage).__name__.removesuffix("RunStorage")
        yield ok(f"DAGSTER_HOME is {home}; {storage} storage with {instance.get_runs_count()} runs")
        yield _one_run_per_tenant(instance)
        yield _daemons(instance)
        for name in SENSORS:
            yield _sensor(instance, name)


def _one_run_per_tenant(instance: "dg.DagsterInstance") -> Finding:
    from autoopt_pipeline.orchestration.partitions import PARTITION_TAG

    queue = instance.get_concurrency_config().run_queue_config
    for limit in (queue.tag_concurrency_limits if queue else None) or ():
        value = limit.get("value")
        unique = isinstance(value, dict) and value.get("applyLimitPerUniqueValue")
        if limit.get("key") == PARTITION_TAG and unique and limit.get("limit") == 1:
            return ok("one run of a tenant at a time")
    return warn(
        "two runs of one tenant at a time are possible, which costs twice and learns nothing more",
        f"put a tag_concurrency_limits entry for {PARTITION_TAG} into dagster.yaml, as this project's own has",
    )


def _daemons(instance: "dg.DagsterInstance") -> Finding:
    statuses = instance.get_daemon_statuses().values()
    silent = [status for status in statuses if status.required and not status.healthy]
    if not silent:
        return ok(f"daemons: {', '.join(sorted(status.daemon_type for status in statuses))}")
    beats = [status.last_heartbeat.timestamp for status in silent if status.last_heartbeat]
    last = f"last {_utc(max(beats))}" if beats else "never"
    return fail(
        f"no heartbeat of daemon {', '.join(sorted(status.daemon_type for status in silent))} ({last})",
        "start dagster-daemon with this DAGSTER_HOME, or see its log",
    )


def _sensor(instance: "dg.DagsterInstance", name: str) -> Finding:
    """The newest of the states that the daemon has kept of a sensor; older ones are of places it was loaded from."""
    from autoopt_pipeline.orchestration.ticks import report_of

    states = [state for state in instance.all_instigator_state() if state.instigator_name == name]
    ticks = [
        (tick, state)
        for state in states
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
    ]
    if not ticks:
        return warn(f"{name} never ran", "start the daemon; if it runs, see whether the code location loads there")
    tick, state = max(ticks, key=lambda each: each[0].timestamp)
    if not state.is_running:
        return fail(f"{name} is stopped: nothing is launched by itself", "turn it on in Dagster, under Automation")
    if tick.is_failure:
        return fail(
            f"{name} failed {_utc(tick.timestamp)}: {_first_cause(tick.error)}",
            "see the tick in Dagster, under Automation",
        )
    report = report_of(tick)
    if report and report.missing:
        named = ", ".join(f"{module[:60]!r} ({count} tenants)" for module, count in report.missing.items())
        return fail(
            f"{name} does not know module {named}",
            "install it where the code location runs and reload that, or take it out: 'autoopt config unset TENANT "
            "modules.NAME'",
        )
    return ok(f"{name} ran last {_utc(tick.timestamp)}, from {state.origin.repository_origin.get_label()}")


def _first_cause(error: "SerializableErrorInfo | None") -> str:
    """What went wrong in our own code, which Dagster wraps into an error of its own."""
    while error and error.cause:
        error = error.cause
    return " ".join(error.message.split()) if error else "no reason given"


def _utc(timestamp: float) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"
