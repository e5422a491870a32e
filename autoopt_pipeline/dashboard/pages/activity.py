"""What happened when, and who did it, across the tenants that a person may see; failures first.

Everything is read from its place of record, a page at a time: what runs and the rollout did from Dagster's event log,
what people did to configurations from their store, and to versions from the artifact store.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg
from starlette.requests import Request
from starlette.responses import Response

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.dashboard.auth import User
from autoopt_pipeline.dashboard.context import dashboard_of
from autoopt_pipeline.dashboard.security import person_of
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.modules.catalog import module_names
from autoopt_pipeline.names import OPTIMIZATION_SENSOR, ROLLOUT_SENSOR
from autoopt_pipeline.registry.audit_log import recent_acts
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.run_history.failures import WHOLE_RUN, causes_of
from autoopt_pipeline.run_history.module_events import EventKind, ModuleEvent, newest_events
from autoopt_pipeline.run_history.outcomes import ROLLED_BACK
from autoopt_pipeline.run_history.runs import FAILED, UNFINISHED, RunSummary, latest_runs
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
    actor: str = ""
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
    instance, before = dashboard.instance, _moment(request.query_params.get("before", ""))
    stored = dashboard.configs(person)
    only = None if person.sees_all else list(stored)
    found, untold = _page(instance, dashboard.parts, person, only, before)
    first = before is None
    return render(
        request,
        "activity.html",
        first=first,
        failures=list(_failed_runs(instance, only)) if first else [],
        others=found.items,
        older=found.reaches,
        untold=untold,
        known=stored,
        sensors=_sensors(instance) if first and person.sees_all else [],
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
    person: User,
    only: Sequence[str] | None,
    before: datetime | None,
) -> tuple[Stretch[Happened], list[str]]:
    """The newest that happened before a moment, and what cannot be told, with the reason."""
    stretches = [
        _events(told, newest_events(instance, kind, module, tenants=only, before=before, limit=_SHOWN))
        for told, kind in ((_outcome, EventKind.MATERIALIZATION), (_observation, EventKind.OBSERVATION))
        for module in module_names()
    ]
    untold = []
    for what, read in (("what people did to versions", _acts), ("changes of configurations", _configurations)):
        try:
            stretches.append(read(parts, person, before))
        except AutooptError as e:
            untold.append(f"{what}: {e}")
    # Of what is further back than one place was read, others may be missing.
    reaches = max((each.reaches for each in stretches if each.reaches), default=None)
    found = [each for stretch in stretches for each in stretch.items if reaches is None or each.at >= reaches]
    if before is None:
        found += _under_way(instance, only)
    found.sort(key=lambda each: each.at, reverse=True)
    if len(found) > _SHOWN:
        found = found[:_SHOWN]
        reaches = found[-1].at
    return Stretch(found, reaches), untold


def _failed_runs(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[Happened]:
    for run in latest_runs(instance, FAILED, tenants=only, limit=_FAILURES_SHOWN):
        causes = causes_of(instance, run.run_id)
        text = "; ".join(why if step == WHOLE_RUN else f"{step}: {why}" for step, why in causes.items())
        kind = "run failed" if run.status is dg.DagsterRunStatus.FAILURE else "run cancelled"
        yield _of_run(run, run.ended_at, kind, text or "?", bad=True)


def _under_way(instance: dg.DagsterInstance, only: Sequence[str] | None) -> Iterator[Happened]:
    for run in latest_runs(instance, UNFINISHED, tenants=only, limit=_SHOWN):
        yield _of_run(run, run.created_at, f"run {run.status.value.lower()}", "", bad=False)


def _of_run(run: RunSummary, at: datetime, kind: str, text: str, *, bad: bool) -> Happened:
    return Happened(at, kind, run.tenant or "", ", ".join(sorted(run.modules)), text, run_id=run.run_id, bad=bad)


def _events(told: Callable[[ModuleEvent], Happened | None], events: Stretch[ModuleEvent]) -> Stretch[Happened]:
    """Materializations or observations, as they are told."""
    return Stretch([happened for event in events.items if (happened := told(event))], events.reaches)


def _outcome(event: ModuleEvent) -> Happened | None:
    if not event.tenant:
        return None
    verdict = str(event.values.get("verdict", "reported by hand"))
    return Happened(
        event.at,
        "proposed" if verdict == Verdict.AWAITING_APPROVAL else verdict,  # it may have been approved since
        event.tenant,
        event.module,
        str(event.values.get("reason", "")),
        run_id=event.run_id,
    )


def _observation(event: ModuleEvent) -> Happened | None:
    values = event.values
    if not event.tenant or "event" not in values:
        return None
    way = f"{values['from']} -> {values['to']}: " if {"from", "to"} <= values.keys() else ""
    kind, text = str(values["event"]), f"{way}{values.get('reason', '')}"
    bad = kind == ROLLED_BACK
    return Happened(event.at, kind, event.tenant, event.module, text, run_id=str(values.get("run_id", "")), bad=bad)


def _acts(parts: Connections, person: User, before: datetime | None) -> Stretch[Happened]:
    acts = recent_acts(parts.files, person.sees, before=before, limit=_SHOWN)
    found = [Happened(each.at, each.what, each.tenant_id, each.module, each.text, each.actor) for each in acts.items]
    return Stretch(found, acts.reaches)


def _configurations(parts: Connections, person: User, before: datetime | None) -> Stretch[Happened]:
    changes = newest_of(
        parts.configs.changes,
        lambda change: person.sees(change.tenant_id),
        before=before,
        limit=_SHOWN,
        most=_CHANGES_READ,
    )
    found = [
        Happened(each.at, each.what, each.tenant_id, "", f"configuration version {each.version}", each.actor)
        for each in changes.items
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
    first = (OPTIMIZATION_SENSOR, ROLLOUT_SENSOR)
    return sorted(found, key=lambda each: each.name not in first)
