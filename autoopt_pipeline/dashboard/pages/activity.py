"""What happened when, and who did it, across the tenants that a person may see; failures first.

Everything is read from its place of record, a page at a time: what runs and the watch did from Dagster's event log,
what people did to configurations from their store, and to versions from the artifact store.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import dagster as dg
from starlette.requests import Request
from starlette.responses import Response

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.dashboard.auth import User
from autoopt_pipeline.dashboard.context import dashboard_of
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.modules.catalog import module_names
from autoopt_pipeline.names import OPTIMIZATION_SENSOR, PARTITION_TAG, WATCH_SENSOR
from autoopt_pipeline.registry.audit_log import recent_acts
from autoopt_pipeline.registry.module_versions import PROPOSED
from autoopt_pipeline.run_history.failures import WHOLE_RUN, causes_of
from autoopt_pipeline.run_history.feed import ended_at
from autoopt_pipeline.run_history.outcomes import ROLLED_BACK, metadata_values
from autoopt_pipeline.run_history.runs import UNFINISHED, selected_modules
from autoopt_pipeline.run_history.ticks import finished_ticks, sensor_states
from autoopt_pipeline.timeline import Stretch, newest_of

_SHOWN = 60
"""Events of each kind that are read for a page, which shows as many of all together."""

_CHANGES_READ = 5000
"""Changes of configurations that a page looks through, where few of them are of the tenants that a person may see."""

_FAILURES_SHOWN = 20
"""Each costs a query."""


@dataclass(frozen=True)
class Happened:
    """Something that happened, in words, and the run or the person that did it; `bad` is what somebody may have to look
    at."""

    at: datetime
    kind: str
    tenant: str
    module: str
    text: str
    by: str = ""
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
    dashboard, user = dashboard_of(request), request.user
    instance, before = dashboard.instance, _moment(request.query_params.get("before", ""))
    stored = dashboard.configs(user)
    only = None if user.sees_all else list(stored)
    found, untold = _page(instance, dashboard.parts, user, only, before)
    first = before is None
    return render(
        request,
        "activity.html",
        first=first,
        failures=list(_failed_runs(instance, only)) if first else [],
        others=found.found,
        older=found.reaches,
        untold=untold,
        known=stored,
        sensors=_sensors(instance) if first and user.sees_all else [],
    )


def _moment(text: str) -> datetime | None:
    """From an address, which may be typed: what is no moment in UTC leads to the newest page."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.utcoffset() == timedelta(0) else None


def _page(
    instance: dg.DagsterInstance,
    parts: Connections,
    user: User,
    only: Sequence[str] | None,
    before: datetime | None,
) -> tuple[Stretch[Happened], list[str]]:
    """The newest that happened before a moment, and what cannot be told, with the reason."""
    stretches = [
        _events(partial(told, module), fetch, module, only, before)
        for told, fetch in ((_outcome, instance.fetch_materializations), (_observation, instance.fetch_observations))
        for module in module_names()
    ]
    untold = []
    for what, read in (("what people did to versions", _acts), ("changes of configurations", _configurations)):
        try:
            stretches.append(read(parts, user, before))
        except AutooptError as e:
            untold.append(f"{what}: {e}")
    # Of what is further back than one place was read, others may be missing.
    reaches = max((each.reaches for each in stretches if each.reaches), default=None)
    found = [each for stretch in stretches for each in stretch.found if reaches is None or each.at >= reaches]
    if before is None:
        found += _under_way(instance, only)
    found.sort(key=lambda each: each.at, reverse=True)
    if len(found) > _SHOWN:
        found = found[:_SHOWN]
        reaches = found[-1].at
    return Stretch(found, reaches), untold


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
        modules, tenant = ", ".join(sorted(selected_modules(run))), run.tags[PARTITION_TAG]
        yield Happened(ended_at(record), kind, tenant, modules, text or "?", run_id=run.run_id, bad=True)


def _under_way(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[Happened]:
    for record in _runs(instance, UNFINISHED, only, _SHOWN):
        run = record.dagster_run
        at = record.create_timestamp.astimezone(UTC)
        modules, tenant = ", ".join(sorted(selected_modules(run))), run.tags[PARTITION_TAG]
        yield Happened(at, f"run {run.status.value.lower()}", tenant, modules, "", run_id=run.run_id)


def _events(
    told: Callable[[dg.EventLogRecord], Happened | None],
    fetch: Callable[..., dg.EventRecordsResult],
    module: str,
    only: Sequence[str] | None,
    before: datetime | None,
) -> Stretch[Happened]:
    """The newest materializations or observations of a module, as they are told."""
    if only == []:
        return Stretch((), None)
    wanted = dg.AssetRecordsFilter(
        dg.AssetKey(module), asset_partitions=only, before_timestamp=before.timestamp() if before else None
    )
    page = fetch(wanted, limit=_SHOWN)
    found = [each for record in page.records if (each := told(record))]
    last = page.records[-1].timestamp if page.has_more and page.records else None
    return Stretch(found, datetime.fromtimestamp(last, UTC) if last else None)


def _outcome(module: str, record: dg.EventLogRecord) -> Happened | None:
    event = record.asset_materialization
    if event is None or not event.partition:
        return None
    said = metadata_values(event)
    verdict = str(said.get("verdict", "reported by hand"))
    return Happened(
        datetime.fromtimestamp(record.timestamp, UTC),
        "proposed" if verdict == PROPOSED else verdict,  # it may have been approved since
        event.partition,
        module,
        str(said.get("reason", "")),
        run_id=record.run_id,
    )


def _observation(module: str, record: dg.EventLogRecord) -> Happened | None:
    event = record.asset_observation
    said = metadata_values(event)
    if event is None or not event.partition or "event" not in said:
        return None
    way = f"{said['from']} -> {said['to']}: " if {"from", "to"} <= said.keys() else ""
    kind, text = str(said["event"]), f"{way}{said.get('reason', '')}"
    at, bad = datetime.fromtimestamp(record.timestamp, UTC), kind == ROLLED_BACK
    return Happened(at, kind, event.partition, module, text, run_id=str(said.get("run_id", "")), bad=bad)


def _acts(parts: Connections, user: User, before: datetime | None) -> Stretch[Happened]:
    acts = recent_acts(parts.files, user.sees, before=before, limit=_SHOWN)
    found = [Happened(each.at, each.what, each.tenant_id, each.module, each.text, each.by) for each in acts.found]
    return Stretch(found, acts.reaches)


def _configurations(parts: Connections, user: User, before: datetime | None) -> Stretch[Happened]:
    changes = newest_of(
        parts.configs.changes,
        lambda change: user.sees(change.tenant_id),
        before=before,
        limit=_SHOWN,
        most=_CHANGES_READ,
    )
    found = [
        Happened(each.at, each.what, each.tenant_id, "", f"configuration version {each.version}", each.by)
        for each in changes.found
    ]
    return Stretch(found, changes.reaches)


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
