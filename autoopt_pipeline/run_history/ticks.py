"""Ticks of sensors, for alerts, metrics and the dashboard.

A failed tick has its error. A successful one of the optimization sensor has a report as its cursor.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Self

import dagster as dg
from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick, InstigatorType, TickStatus
from dagster._utils.error import SerializableErrorInfo
from pydantic import BaseModel, ConfigDict, ValidationError

from autoopt_pipeline.errors import (
    ArtifactStoreUnavailable,
    ConfigStoreRefused,
    ConfigStoreUnavailable,
    PhoenixRefused,
    PhoenixUnavailable,
    PlanningFailed,
)
from autoopt_pipeline.names import OPTIMIZATION_SENSOR
from autoopt_pipeline.run_history.events import Ticked
from autoopt_pipeline.scheduling.turns import QueuePosition

PHOENIX = "Phoenix"

CONFIG_STORE = "the configuration store"

_MODULES = "finding the tenants' modules"

_SERVICES = {
    PhoenixUnavailable.__name__: PHOENIX,
    PhoenixRefused.__name__: PHOENIX,
    ConfigStoreUnavailable.__name__: CONFIG_STORE,
    ConfigStoreRefused.__name__: CONFIG_STORE,
    ArtifactStoreUnavailable.__name__: "the artifact store",
}
"""Errors, as ticks name them, by the service that they are about."""

_BEFORE_PHOENIX = frozenset({CONFIG_STORE})
"""What has answered by the time that Phoenix is asked."""


_FINISHED = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]


class _Report(BaseModel):
    """What a sensor leaves as its cursor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, cursor: str | None) -> Self | None:
        """None where there is no report, or where somebody else wrote the cursor."""
        try:
            return cls.model_validate_json(cursor) if cursor else None
        except ValidationError:
            return None


class TickReport(_Report):
    """The result of one tick for all tenants: modules by decision, and since when the longest waiting one is due.

    `reached` is where the next tick continues to ask Phoenix; None: there was time for all. `missing` are the errors
    about modules that the code location does not know, those that most tenants name.
    """

    decisions: dict[str, int]
    oldest_due_since: datetime | None
    phoenix_asked: bool
    phoenix_error: str | None
    reached: QueuePosition | None = None
    missing: tuple[str, ...] = ()


class RolloutReport(_Report):
    """One tick of the rollout sensor: rollouts under way, and those that it deferred to the next tick."""

    active: int
    deferred: int


def sensor_states(instance: dg.DagsterInstance) -> dict[str, InstigatorState]:
    """The sensors that ever ran, by name. A renamed code location leaves a second one of the name: the later counts."""
    states: dict[str, InstigatorState] = {}
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        if state.instigator_name not in states or _last_tick(state) > _last_tick(states[state.instigator_name]):
            states[state.instigator_name] = state
    return states


def _last_tick(state: InstigatorState) -> float:
    return getattr(state.instigator_data, "last_tick_start_timestamp", None) or 0.0


def finished_ticks(
    instance: dg.DagsterInstance, state: InstigatorState, *, limit: int, after: float | None = None
) -> Sequence[InstigatorTick]:
    """The latest ticks, newest first; `after` is a Unix time."""
    return instance.get_ticks(
        state.instigator_origin_id, state.selector_id, after=after, limit=limit, statuses=_FINISHED
    )


def report_of(tick: InstigatorTick) -> TickReport | None:
    """None for a failed tick, and for one of another sensor."""
    if tick.instigator_name != OPTIMIZATION_SENSOR or tick.is_failure:
        return None
    return TickReport.load(tick.cursor)


def read_tick(tick: InstigatorTick) -> Ticked:
    """What kept the tick from what it is for. An error that is of no service is the sensor's own."""
    at, sensor = datetime.fromtimestamp(tick.timestamp, UTC), tick.instigator_name
    if not tick.is_failure:
        report = report_of(tick)
        if report is None:
            return Ticked(at, sensor)
        if report.phoenix_error:
            return Ticked(at, sensor, PHOENIX, report.phoenix_error, _BEFORE_PHOENIX)
        answered = _BEFORE_PHOENIX | {f"sensor {sensor}"} | ({PHOENIX} if report.phoenix_asked else set())
        if report.missing:
            return Ticked(at, sensor, _MODULES, report.missing[0], answered)
        return Ticked(at, sensor, works=None if report.phoenix_asked else answered | {_MODULES})
    errors = causes(tick)
    for error in errors:
        if service := _SERVICES.get(error.cls_name or ""):
            return Ticked(at, sensor, service, _text(error), _BEFORE_PHOENIX if service == PHOENIX else frozenset())
    # Tenants' own errors come after everything was asked.
    undecided = any(error.cls_name == PlanningFailed.__name__ for error in errors)
    works = _BEFORE_PHOENIX | {PHOENIX} if undecided else frozenset[str]()
    return Ticked(at, sensor, f"sensor {sensor}", _text(errors[-1]) if errors else "", works)


def causes(tick: InstigatorTick) -> list[SerializableErrorInfo]:
    """The error of a failed tick, and what caused it, down to the first cause."""
    chain, error = [], tick.error
    while error:
        chain.append(error)
        error = error.cause
    return chain


def _text(error: SerializableErrorInfo) -> str:
    """The message without the name of its class, which Dagster puts before it."""
    return error.message.partition(": ")[2] or error.message
