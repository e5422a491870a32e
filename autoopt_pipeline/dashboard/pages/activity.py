"""The events of all tenants that a user may see, with who caused them; failures first.

Everything is read from its place of record, a page at a time: what runs and the rollout did from Dagster's event log,
what people did to configurations from their store, and to versions from the artifact store.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import dagster as dg
from starlette.requests import Request
from starlette.responses import Response

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.dashboard.auth import User
from autoopt_pipeline.dashboard.context import dashboard_of
from autoopt_pipeline.dashboard.sensors import read_sensors
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.modules.catalog import module_names
from autoopt_pipeline.registry.audit_log import recent_entries
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.run_history.failures import WHOLE_RUN, causes_of
from autoopt_pipeline.run_history.module_events import EventKind, ModuleEvent, newest_events
from autoopt_pipeline.run_history.outcomes import ROLLED_BACK
from autoopt_pipeline.run_history.runs import FAILED, UNFINISHED, RunSummary, latest_runs
from autoopt_pipeline.timeline import Stretch, newest_of

_SHOWN = 60
"""Events of each kind that a page reads, and events of all kinds that it shows."""

_CHANGES_READ = 5000
"""The most changes of configurations that a page reads when the user may see few of the tenants."""

_FAILURES_SHOWN = 20
"""Each failed run costs a query."""


@dataclass(frozen=True)
class ActivityEvent:
    """An event in words, and the run or user that caused it. `bad` marks events that may need attention."""

    at: datetime
    kind: str
    tenant: str
    module: str
    text: str
    actor: str = ""
    run_id: str = ""
    bad: bool = False


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
        others=events.items,
        older=events.reaches,
        unreadable=unreadable,
        known=stored,
        sensors=read_sensors(instance) if first and user.sees_all else [],
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
        _events(told, newest_events(instance, kind, module, tenants=only, before=before, limit=_SHOWN))
        for told, kind in ((_outcome, EventKind.MATERIALIZATION), (_observation, EventKind.OBSERVATION))
        for module in module_names()
    ]
    unreadable = []
    for what, read in (("what people did to versions", _audited), ("changes of configurations", _configurations)):
        try:
            stretches.append(read(parts, user, before))
        except AutooptError as e:
            unreadable.append(f"{what}: {e}")
    # Before the oldest event of a source that has more, events of that source are missing.
    reaches = max((stretch.reaches for stretch in stretches if stretch.reaches), default=None)
    events = [event for stretch in stretches for event in stretch.items if reaches is None or event.at >= reaches]
    if before is None:
        events += _under_way(instance, only)
    events.sort(key=lambda event: event.at, reverse=True)
    if len(events) > _SHOWN:
        events = events[:_SHOWN]
        reaches = events[-1].at
    return Stretch(events, reaches), unreadable


def _failed_runs(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[ActivityEvent]:
    for run in latest_runs(instance, FAILED, tenants=only, limit=_FAILURES_SHOWN):
        causes = causes_of(instance, run.run_id)
        text = "; ".join(why if step == WHOLE_RUN else f"{step}: {why}" for step, why in causes.items())
        kind = "run failed" if run.status is dg.DagsterRunStatus.FAILURE else "run cancelled"
        yield _of_run(run, run.ended_at, kind, text or "its log says why", bad=True)


def _under_way(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[ActivityEvent]:
    for run in latest_runs(instance, UNFINISHED, tenants=only, limit=_SHOWN):
        yield _of_run(run, run.created_at, f"run {run.status.value.lower()}", "", bad=False)


def _of_run(run: RunSummary, at: datetime, kind: str, text: str, *, bad: bool) -> ActivityEvent:
    return ActivityEvent(at, kind, run.tenant or "", ", ".join(sorted(run.modules)), text, run_id=run.run_id, bad=bad)


def _events(
    told: Callable[[ModuleEvent], ActivityEvent | None], events: Stretch[ModuleEvent]
) -> Stretch[ActivityEvent]:
    """Materializations or observations, as they are told."""
    return Stretch([happened for event in events.items if (happened := told(event))], events.reaches)


def _outcome(event: ModuleEvent) -> ActivityEvent | None:
    if not event.tenant:
        return None
    verdict = str(event.values.get("verdict", "reported by hand"))
    return ActivityEvent(
        event.at,
        "proposed" if verdict == Verdict.AWAITING_APPROVAL else verdict,  # it may have been approved since
        event.tenant,
        event.module,
        str(event.values.get("reason", "")),
        run_id=event.run_id,
    )


def _observation(event: ModuleEvent) -> ActivityEvent | None:
    values = event.values
    if not event.tenant or "event" not in values:
        return None
    way = f"{values['from']} -> {values['to']}: " if {"from", "to"} <= values.keys() else ""
    kind, text = str(values["event"]), f"{way}{values.get('reason', '')}"
    bad = kind == ROLLED_BACK
    return ActivityEvent(
        event.at, kind, event.tenant, event.module, text, run_id=str(values.get("run_id", "")), bad=bad
    )


def _audited(parts: Connections, user: User, before: datetime | None) -> Stretch[ActivityEvent]:
    entries = recent_entries(parts.files, user.sees, before=before, limit=_SHOWN)
    events = [
        ActivityEvent(entry.at, entry.what, entry.tenant_id, entry.module, entry.text, entry.actor)
        for entry in entries.items
    ]
    return Stretch(events, entries.reaches)


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
            change.at, change.what, change.tenant_id, "", f"configuration version {change.version}", change.actor
        )
        for change in changes.items
    ]
    return Stretch(events, changes.reaches)
