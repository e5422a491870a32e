"""What happened when, across the tenants that a person may see; failures first."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg
from starlette.requests import Request
from starlette.responses import Response

from autoopt_pipeline.dashboard.guard import person_of
from autoopt_pipeline.dashboard.rendering import render
from autoopt_pipeline.dashboard.state import dashboard_of
from autoopt_pipeline.modules.registry import module_names
from autoopt_pipeline.orchestration.failures import WHOLE_RUN, causes_of
from autoopt_pipeline.orchestration.history import ROLLED_BACK, values_of
from autoopt_pipeline.orchestration.news import ended_at
from autoopt_pipeline.orchestration.partitions import PARTITION_TAG, UNFINISHED, selected_modules
from autoopt_pipeline.orchestration.ticks import OPTIMIZATION_SENSOR, WATCH_SENSOR, finished_ticks, sensor_states
from autoopt_pipeline.tenants.store import StoredConfig

_SHOWN = 60
"""Events of each kind that are read; the page shows as many of all together."""

_FAILURES_SHOWN = 20
"""Each costs a query."""


@dataclass(frozen=True)
class Happened:
    """Something that happened, in words. `bad` is what somebody may have to look at."""

    at: datetime
    kind: str
    tenant: str
    module: str
    text: str
    run_id: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Sensor:
    """What a sensor said when it looked last; `failed` where it could not."""

    name: str
    running: bool
    looked_at: datetime | None
    said: str
    failed: bool


def activity_page(request: Request) -> Response:
    dashboard, person = dashboard_of(request), person_of(request)
    stored = dashboard.configs(person)
    only = None if person.sees_all else list(stored)
    instance = dashboard.instance
    failures = list(_failed_runs(instance, only))
    others = [
        *_outcomes(instance, only),
        *_observations(instance, only),
        *_under_way(instance, only),
        *_configurations(stored.values()),
    ]
    others.sort(key=lambda each: each.at, reverse=True)
    return render(
        request,
        "activity.html",
        failures=failures,
        others=others[:_SHOWN],
        sensors=_sensors(instance) if person.sees_all else [],
    )


def _runs(instance: dg.DagsterInstance, statuses: Sequence[dg.DagsterRunStatus], only: Sequence[str] | None, limit: int
          ) -> Iterator[dg.RunRecord]:  # fmt: skip
    if only == []:
        return
    tags: dict[str, str | list[str]] = {} if only is None else {PARTITION_TAG: list(only)}
    wanted = dg.RunsFilter(statuses=statuses, tags=tags)
    for record in instance.get_run_records(wanted, limit=limit, order_by="update_timestamp"):
        if PARTITION_TAG in record.dagster_run.tags:
            yield record


def _failed_runs(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[Happened]:
    statuses = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    for record in _runs(instance, statuses, only, _FAILURES_SHOWN):
        run = record.dagster_run
        causes = causes_of(instance, run.run_id)
        text = "; ".join(why if step == WHOLE_RUN else f"{step}: {why}" for step, why in causes.items())
        kind = "run failed" if run.status is dg.DagsterRunStatus.FAILURE else "run cancelled"
        modules = ", ".join(sorted(selected_modules(run)))
        yield Happened(ended_at(record), kind, run.tags[PARTITION_TAG], modules, text or "?", run.run_id, bad=True)


def _under_way(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[Happened]:
    for record in _runs(instance, UNFINISHED, only, _SHOWN):
        run = record.dagster_run
        at = record.create_timestamp.astimezone(UTC)
        modules = ", ".join(sorted(selected_modules(run)))
        yield Happened(at, f"run {run.status.value.lower()}", run.tags[PARTITION_TAG], modules, "", run.run_id)


def _records(
    fetch: Callable[..., dg.EventRecordsResult], module: str, only: Sequence[str] | None
) -> Iterator[dg.EventLogRecord]:
    if only != []:
        yield from fetch(dg.AssetRecordsFilter(dg.AssetKey(module), asset_partitions=only), limit=_SHOWN).records


def _outcomes(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[Happened]:
    for module in module_names():
        for record in _records(instance.fetch_materializations, module, only):
            event = record.asset_materialization
            if event and event.partition:
                said = values_of(event)
                yield Happened(
                    datetime.fromtimestamp(record.timestamp, UTC),
                    str(said.get("verdict", "reported by hand")),
                    event.partition,
                    module,
                    str(said.get("reason", "")),
                    record.run_id,
                )


def _observations(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[Happened]:
    for module in module_names():
        for record in _records(instance.fetch_observations, module, only):
            event = record.asset_observation
            said = values_of(event)
            if event and event.partition and "event" in said:
                at = datetime.fromtimestamp(record.timestamp, UTC)
                way = f"{said['from']} -> {said['to']}: " if {"from", "to"} <= said.keys() else ""
                bad = said["event"] == ROLLED_BACK
                text = f"{way}{said.get('reason', '')}"
                yield Happened(at, str(said["event"]), event.partition, module, text, bad=bad)


def _configurations(stored: Collection[StoredConfig]) -> list[Happened]:
    """The newest version of each tenant's."""
    newest = sorted(stored, key=lambda entry: entry.written_at, reverse=True)[:_SHOWN]
    return [
        Happened(entry.written_at, "configuration saved", entry.tenant_id, "", f"version {entry.version}")
        for entry in newest
    ]


def _sensors(instance: dg.DagsterInstance) -> list[Sensor]:
    found = []
    for name, state in sorted(sensor_states(instance).items()):
        ticks = finished_ticks(instance, state, limit=1)
        tick = ticks[0] if ticks else None
        said = ""
        if tick:
            said = (tick.error.message if tick.error else tick.skip_reason) or f"{len(tick.run_ids)} runs launched"
        looked_at = datetime.fromtimestamp(tick.timestamp, UTC) if tick else None
        found.append(Sensor(name, state.is_running, looked_at, said, bool(tick and tick.is_failure)))
    first = (OPTIMIZATION_SENSOR, WATCH_SENSOR)
    return sorted(found, key=lambda each: each.name not in first)
