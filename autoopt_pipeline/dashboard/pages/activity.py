"""The events of all tenants that a user may see, with who caused them; failures first.

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
"""Events of each kind that a page reads, and events of all kinds that it shows."""

_CHANGES_READ = 5000
"""The most changes of configurations that a page reads when the user may see few of the tenants."""

_FAILURES_SHOWN = 20
"""Each failed run costs a query."""


@dataclass(frozen=True)
class ActivityEvent:
    """An event in words, and the run or person that caused it. `bad` marks events that may need attention."""

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
    """The message of a sensor's last tick, and whether the tick failed."""

    name: str
    running: bool
    looked_at: datetime | None
    message: str
    failed: bool


def activity_page(request: Request) -> Response:
    dashboard, user = dashboard_of(request), request.user
    instance, before = dashboard.instance, _moment(request.query_params.get("before", ""))
    stored = dashboard.configs(user)
    only = None if user.sees_all else list(stored)
    events, unreadable = _page(instance, dashboard.parts, user, only, before)
    first = before is None
    return render(
        request,
        "activity.html",
        first=first,
        failures=list(_failed_runs(instance, only)) if first else [],
        others=events.found,
        older=events.reaches,
        unreadable=unreadable,
        known=stored,
        sensors=_sensors(instance) if first and user.sees_all else [],
    )


def _moment(text: str) -> datetime | None:
    """Read a moment in UTC from a URL. Anything else leads to the newest page."""
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
) -> tuple[Stretch[ActivityEvent], list[str]]:
    """The newest events before a moment, and the sources that cannot be read, with the reason."""
    stretches = [
        _events(partial(as_event, module), fetch, module, only, before)
        for as_event, fetch in (
            (_outcome, instance.fetch_materializations),
            (_observation, instance.fetch_observations),
        )
        for module in module_names()
    ]
    unreadable = []
    for what, read in (("what people did to versions", _acts), ("changes of configurations", _configurations)):
        try:
            stretches.append(read(parts, user, before))
        except AutooptError as e:
            unreadable.append(f"{what}: {e}")
    # Before the oldest event of a source that has more, events of that source are missing.
    reaches = max((stretch.reaches for stretch in stretches if stretch.reaches), default=None)
    events = [event for stretch in stretches for event in stretch.found if reaches is None or event.at >= reaches]
    if before is None:
        events += _under_way(instance, only)
    events.sort(key=lambda event: event.at, reverse=True)
    if len(events) > _SHOWN:
        events = events[:_SHOWN]
        reaches = events[-1].at
    return Stretch(events, reaches), unreadable


def _runs(instance: dg.DagsterInstance, statuses: Sequence[dg.DagsterRunStatus], only: Sequence[str] | None, limit: int
          ) -> Iterator[dg.RunRecord]:  # fmt: skip
    if only == []:
        return
    tags: dict[str, str | list[str]] = {} if only is None else {PARTITION_TAG: list(only)}
    wanted = dg.RunsFilter(statuses=statuses, tags=tags)
    for record in instance.get_run_records(wanted, limit=limit, order_by="update_timestamp"):
        if PARTITION_TAG in record.dagster_run.tags:
            yield record


def _failed_runs(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[ActivityEvent]:
    statuses = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    for record in _runs(instance, statuses, only, _FAILURES_SHOWN):
        run = record.dagster_run
        causes = causes_of(instance, run.run_id)
        text = "; ".join(why if step == WHOLE_RUN else f"{step}: {why}" for step, why in causes.items())
        kind = "run failed" if run.status is dg.DagsterRunStatus.FAILURE else "run cancelled"
        modules, tenant = ", ".join(sorted(selected_modules(run))), run.tags[PARTITION_TAG]
        yield ActivityEvent(ended_at(record), kind, tenant, modules, text or "?", run_id=run.run_id, bad=True)


def _under_way(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[ActivityEvent]:
    for record in _runs(instance, UNFINISHED, only, _SHOWN):
        run = record.dagster_run
        at = record.create_timestamp.astimezone(UTC)
        modules, tenant = ", ".join(sorted(selected_modules(run))), run.tags[PARTITION_TAG]
        yield ActivityEvent(at, f"run {run.status.value.lower()}", tenant, modules, "", run_id=run.run_id)


def _events(
    as_event: Callable[[dg.EventLogRecord], ActivityEvent | None],
    fetch: Callable[..., dg.EventRecordsResult],
    module: str,
    only: Sequence[str] | None,
    before: datetime | None,
) -> Stretch[ActivityEvent]:
    """The newest materializations or observations of a module, as events."""
    if only == []:
        return Stretch((), None)
    wanted = dg.AssetRecordsFilter(
        dg.AssetKey(module), asset_partitions=only, before_timestamp=before.timestamp() if before else None
    )
    page = fetch(wanted, limit=_SHOWN)
    events = [event for record in page.records if (event := as_event(record))]
    last = page.records[-1].timestamp if page.has_more and page.records else None
    return Stretch(events, datetime.fromtimestamp(last, UTC) if last else None)


def _outcome(module: str, record: dg.EventLogRecord) -> ActivityEvent | None:
    event = record.asset_materialization
    if event is None or not event.partition:
        return None
    metadata = metadata_values(event)
    verdict = str(metadata.get("verdict", "reported by hand"))
    return ActivityEvent(
        datetime.fromtimestamp(record.timestamp, UTC),
        "proposed" if verdict == PROPOSED else verdict,  # it may have been approved since
        event.partition,
        module,
        str(metadata.get("reason", "")),
        run_id=record.run_id,
    )


def _observation(module: str, record: dg.EventLogRecord) -> ActivityEvent | None:
    event = record.asset_observation
    metadata = metadata_values(event)
    if event is None or not event.partition or "event" not in metadata:
        return None
    way = f"{metadata['from']} -> {metadata['to']}: " if {"from", "to"} <= metadata.keys() else ""
    kind, text = str(metadata["event"]), f"{way}{metadata.get('reason', '')}"
    at, bad = datetime.fromtimestamp(record.timestamp, UTC), kind == ROLLED_BACK
    return ActivityEvent(at, kind, event.partition, module, text, run_id=str(metadata.get("run_id", "")), bad=bad)


def _acts(parts: Connections, user: User, before: datetime | None) -> Stretch[ActivityEvent]:
    acts = recent_acts(parts.files, user.sees, before=before, limit=_SHOWN)
    events = [ActivityEvent(act.at, act.what, act.tenant_id, act.module, act.text, act.by) for act in acts.found]
    return Stretch(events, acts.reaches)


def _configurations(parts: Connections, user: User, before: datetime | None) -> Stretch[ActivityEvent]:
    changes = newest_of(
        parts.configs.changes,
        lambda change: user.sees(change.tenant_id),
        before=before,
        limit=_SHOWN,
        most=_CHANGES_READ,
    )
    events = [
        ActivityEvent(
            change.at, change.what, change.tenant_id, "", f"configuration version {change.version}", change.by
        )
        for change in changes.found
    ]
    return Stretch(events, changes.reaches)


def _sensors(instance: dg.DagsterInstance) -> list[Sensor]:
    sensors = []
    for name, state in sorted(sensor_states(instance).items()):
        ticks = finished_ticks(instance, state, limit=1)
        tick = ticks[0] if ticks else None
        message = ""
        if tick:
            message = (tick.error.message if tick.error else tick.skip_reason) or f"{len(tick.run_ids)} runs launched"
        looked_at = datetime.fromtimestamp(tick.timestamp, UTC) if tick else None
        sensors.append(Sensor(name, state.is_running, looked_at, message, bool(tick and tick.is_failure)))
    first = (OPTIMIZATION_SENSOR, WATCH_SENSOR)
    return sorted(sensors, key=lambda sensor: sensor.name not in first)
