"""What to alert about, read from Dagster's records: at most one alert of each kind since a cursor.

The cursor holds places in these records and nothing else, and an alert is made of what came after its place. So as long
as the place stays, an alert that was not delivered is made again, together with what has happened meanwhile.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import dagster as dg
from pydantic import Field

from autoopt_pipeline.monitoring.alerts.messages import (
    failure_alert,
    outage_alert,
    page,
    quality_alert,
    rollback_alert,
)
from autoopt_pipeline.monitoring.alerts.models import Affected, Alert, Kind, beginning_of
from autoopt_pipeline.run_history.ended_runs import latest_end
from autoopt_pipeline.run_history.module_events import EventKind, ModuleEvent, latest_id, read_page
from autoopt_pipeline.run_history.module_failures import ModuleFailures, read_module_failures
from autoopt_pipeline.run_history.outcomes import FALL_EXPLAINED, QUALITY_FELL, ROLLED_BACK
from autoopt_pipeline.run_history.ticks import StoredCursor, find_outages, finished_ticks, read_tick, sensor_states

_OBSERVATION = EventKind.OBSERVATION

_TICKS, _MOST_TICKS = 20, 500
"""Ticks of a sensor that are read beside those that make an outage, usually and after a receiver was down."""


class AlertCursor(StoredCursor):
    """Up to where one receiver has got its alerts: ids of events, and for each sensor the start of a tick (Unix time).

    `observations` is about rollbacks, `qualities` about falls in quality.

    `began` is when it was new (Unix time), and `sent_at` when it got the last alert of a kind.
    """

    failures: dict[Kind, int]
    observations: dict[str, int]
    qualities: dict[str, int] = Field({})
    ticks: dict[str, float] = Field({})
    began: float = 0
    sent_at: dict[Kind, datetime] = Field({})


@dataclass(frozen=True)
class AlertSource:
    """Dagster's records of these modules and sensors, those of runs and modules `until` a moment.

    `alert_after` is the number of consecutive failures of a module, or failed ticks of a sensor, that raise an alert.
    """

    instance: dg.DagsterInstance
    modules: Collection[str]
    sensors: Collection[str]
    alert_after: int
    until: datetime
    ui_url: str | None = None
    _failures: dict[int, ModuleFailures] = field(default_factory=dict, init=False, repr=False)

    def failures_after(self, event_id: int) -> ModuleFailures:
        """Module failures after an event. Two kinds of alerts are made of them, so they are read once for both."""
        if event_id not in self._failures:
            self._failures[event_id] = read_module_failures(self.instance, self.modules, event_id, until=self.until)
        return self._failures[event_id]


Collected = tuple[Alert | None, AlertCursor]
"""An alert, None where there is nothing to alert about, and the cursor for when it has been delivered."""


def start_cursor(source: AlertSource) -> AlertCursor:
    """For a new receiver, which gets what happens from now on, and outages that have not ended."""
    failure = latest_end(source.instance, dg.DagsterEventType.RUN_FAILURE)
    observed = {module: latest_id(source.instance, _OBSERVATION, module) for module in source.modules}
    return AlertCursor(
        failures={Kind.RUN_FAILED: failure, Kind.FAILING_REPEATEDLY: failure},
        observations=observed,
        qualities=observed,
        began=time.time(),
    )


def _unreachable(source: AlertSource, cursor: AlertCursor) -> Collected:
    results = []
    for sensor, state in sensor_states(source.instance).items():
        if sensor in source.sensors:
            ticks = finished_ticks(source.instance, state, limit=source.alert_after + _TICKS)
            if sum(tick.timestamp <= cursor.ticks.get(sensor, 0) for tick in ticks) < source.alert_after:
                ticks = finished_ticks(source.instance, state, limit=source.alert_after + _MOST_TICKS)
            results += [read_tick(tick) for tick in reversed(ticks)]
    outages = [
        outage
        for outage in find_outages(results, after=source.alert_after)
        if outage.at.timestamp() > cursor.ticks.get(outage.sensor, 0)
        and (outage.ended is None or outage.ended.timestamp() > cursor.began)
    ]
    places = cursor.ticks | {result.sensor: result.at.timestamp() for result in results}
    alert = outage_alert(outages, source.alert_after) if outages else None
    return alert, cursor.model_copy(update={"ticks": places})


def _rolled_back(source: AlertSource, cursor: AlertCursor) -> Collected:
    events, places = _observed(source, cursor.observations, {ROLLED_BACK})

    def path(event: ModuleEvent) -> str:
        return f"{event.values.get('from') or 'baseline'} -> {event.values.get('to') or 'baseline'}: "

    affected = [_affected(source, event, path(event)) for event in events]
    alert = rollback_alert(affected, max(event.at for event in events)) if events else None
    return alert, cursor.model_copy(update={"observations": places})


def _quality_fell(source: AlertSource, cursor: AlertCursor) -> Collected:
    events, places = _observed(source, cursor.qualities, {QUALITY_FELL, FALL_EXPLAINED})
    affected = [_affected(source, event) for event in events]
    alert = quality_alert(affected, max(event.at for event in events)) if events else None
    return alert, cursor.model_copy(update={"qualities": places})


def _observed(
    source: AlertSource, known: Mapping[str, int], kinds: Collection[str]
) -> tuple[list[ModuleEvent], dict[str, int]]:
    """Observations of these kinds after the known places, and the places for when they have been told."""
    events, places = [], {}
    for module in source.modules:
        place = known.get(module)
        places[module] = latest_id(source.instance, _OBSERVATION, module) if place is None else place
        for event in read_page(source.instance, _OBSERVATION, module, after=places[module], until=source.until):
            places[module] = event.storage_id
            if event.tenant is not None and event.values.get("event") in kinds:
                events.append(event)
    return events, places


def _affected(source: AlertSource, event: ModuleEvent, detail: str = "") -> Affected:
    return Affected(
        tenant=event.tenant or "",
        module=event.module,
        detail=beginning_of(f"{detail}{event.values.get('reason', '')}"),
        url=page(source.ui_url, f"assets/{event.module}?view=partitions"),
    )


def _run_failed(source: AlertSource, cursor: AlertCursor) -> Collected:
    """Of a module's consecutive failures the first. Any may be the first where the module has had an outcome since, or
    where older failures are left out."""
    return _failures(source, cursor, Kind.RUN_FAILED, lambda number, full: full or number in {None, 1})


def _failing_repeatedly(source: AlertSource, cursor: AlertCursor) -> Collected:
    """Of a module's consecutive failures each n-th, so that a module that has failed for long is reported, too."""

    def is_news(number: int | None, full: bool) -> bool:
        return number is not None and number >= source.alert_after and (full or number % source.alert_after == 0)

    return _failures(source, cursor, Kind.FAILING_REPEATEDLY, is_news)


def _failures(
    source: AlertSource, cursor: AlertCursor, kind: Kind, is_news: Callable[[int | None, bool], bool]
) -> Collected:
    read = source.failures_after(cursor.failures[kind])
    failures = [failure for failure in read.failures if is_news(failure.number, read.full)]
    alert = failure_alert(kind, failures, ui_url=source.ui_url, newest_only=read.full) if failures else None
    return alert, cursor.model_copy(update={"failures": cursor.failures | {kind: read.after}})


COLLECTORS: dict[Kind, Callable[[AlertSource, AlertCursor], Collected]] = {
    Kind.UNREACHABLE: _unreachable,
    Kind.ROLLED_BACK: _rolled_back,
    Kind.QUALITY_FELL: _quality_fell,
    Kind.RUN_FAILED: _run_failed,
    Kind.FAILING_REPEATEDLY: _failing_repeatedly,
}
"""By kind of alert, in the order in which they are sent."""
