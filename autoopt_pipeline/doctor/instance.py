"""Checks of Dagster: the code location loads, daemons send heartbeats, sensors run."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from autoopt_pipeline.doctor.findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    import dagster as dg
    from dagster._core.scheduler.instigation import InstigatorState


def code_location() -> Iterator[Finding]:
    import dagster as dg

    from autoopt_pipeline.definitions import defs

    dg.Definitions.validate_loadable(defs)
    yield ok(f"autoopt_pipeline.definitions loads with Dagster {dg.__version__}")


def sensor_names() -> list[str]:
    """Return the sensors that the settings require, among them one for each configured receiver of alerts."""
    from autoopt_pipeline.definitions import defs

    return [sensor.name for sensor in defs.sensors or ()]


def dagster_instance(home: Path | None) -> Iterator[Finding]:
    if home is None:
        yield warn("there is no Dagster instance here", "set DAGSTER_HOME, or go to the folder with dagster.yaml")
        return
    from autoopt_pipeline.run_history.instance import describe_storage, open_instance
    from autoopt_pipeline.run_history.ticks import sensor_states

    with open_instance(home) as instance:
        yield ok(f"DAGSTER_HOME is {home}; {describe_storage(instance)}")
        yield _one_run_per_tenant(instance)
        yield _daemons(instance)
        states = sensor_states(instance)
        for name in sensor_names():
            yield from _sensor(instance, name, states.get(name))


def _one_run_per_tenant(instance: "dg.DagsterInstance") -> Finding:
    from autoopt_pipeline.names import PARTITION_TAG

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
    from autoopt_pipeline.run_history.instance import daemon_statuses

    statuses = daemon_statuses(instance)
    silent = [status for status in statuses if status.required and not status.healthy]
    if not silent:
        return ok(f"daemons: {', '.join(sorted(status.daemon_type for status in statuses))}")
    beats = [status.last_heartbeat.timestamp for status in silent if status.last_heartbeat]
    last = f"last {_utc(max(beats))}" if beats else "never"
    return fail(
        f"no heartbeat of daemon {', '.join(sorted(status.daemon_type for status in silent))} ({last})",
        "start dagster-daemon with this DAGSTER_HOME, or see its log",
    )


def _sensor(instance: "dg.DagsterInstance", name: str, state: "InstigatorState | None") -> Iterator[Finding]:
    from autoopt_pipeline.run_history.ticks import causes, finished_ticks, report_of

    ticks = finished_ticks(instance, state, limit=1) if state else ()
    if not state or not ticks:
        yield warn(f"{name} never ran", "start the daemon; if it runs, see whether the code location loads there")
        return
    (tick,) = ticks
    if not state.is_running:
        yield fail(f"{name} is stopped, so nothing runs automatically", "turn it on in Dagster, under Automation")
        return
    if tick.is_failure:
        # Dagster wraps an error of our code in its own.
        cause = " ".join(causes(tick)[-1].message.split()) if tick.error else "no reason given"
        yield fail(f"{name} failed {_utc(tick.timestamp)}: {cause}", "see the tick in Dagster, under Automation")
        return
    report = report_of(tick)
    for error in report.missing if report else ():
        problem, _, remedy = error.partition(" -> ")
        yield fail(f"{name} cannot decide for a module of {problem}", remedy)
    yield ok(f"{name} ran last {_utc(tick.timestamp)}, from {state.origin.repository_origin.get_label()}")


def _utc(timestamp: float) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"
