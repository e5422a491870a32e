"""Ticks of sensors, for alerts, metrics and the dashboard.

A failed tick has its error. A successful one of the optimization sensor has a report as its cursor.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from autoopt_pipeline.run_history.failures import error_chain
from autoopt_pipeline.scheduling.turns import QueuePosition

PHOENIX = "Phoenix"

_CONFIG_STORE = "the configuration store"

_MODULES = "finding the tenants' modules"

_SERVERS = {
    PhoenixUnavailable.__name__: PHOENIX,
    PhoenixRefused.__name__: PHOENIX,
    ConfigStoreUnavailable.__name__: _CONFIG_STORE,
    ConfigStoreRefused.__name__: _CONFIG_STORE,
    ArtifactStoreUnavailable.__name__: "the artifact store",
}
"""The server that an error of a tick is about."""

_INTERVALS_MISSED, _PATIENCE_SECONDS = 5, 60

_FINISHED = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]


class StoredCursor(BaseModel):
    """What a sensor leaves as its cursor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, cursor: str | None) -> Self | None:
        """None where there is no report, or where somebody else wrote the cursor."""
        try:
            return cls.model_validate_json(cursor) if cursor else None
        except ValidationError:
            return None


class TickReport(StoredCursor):
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


class RolloutReport(StoredCursor):
    """One tick of the rollout sensor: rollouts under way, and those that it deferred to the next tick."""

    active: int
    deferred: int


class SeenQuality(BaseModel):
    """The level of what serves for a tenant's module, with its interval (0 to 1), and its last fall.

    Levels are None without scores. `fell_at` (UTC) and `cause` are None without a fall.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: str
    module: str
    level: float | None = None
    low: float | None = None
    high: float | None = None
    fell_at: datetime | None = None
    cause: str | None = None


class QualityReport(StoredCursor):
    """One tick of the quality sensor: tenants that it deferred to the next tick, and levels, the most notable first."""

    deferred: int
    seen: tuple[SeenQuality, ...] = ()


def sensor_states(instance: dg.DagsterInstance) -> dict[str, InstigatorState]:
    """The sensors that ever ran, by name. A renamed code location leaves a second one of the name: the later counts."""
    states: dict[str, InstigatorState] = {}
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        if state.instigator_name not in states or _last_tick(state) > _last_tick(states[state.instigator_name]):
            states[state.instigator_name] = state
    return states


def _last_tick(state: InstigatorState) -> float:
    return getattr(state.instigator_data, "last_tick_start_timestamp", None) or 0.0


def sensor_health(state: InstigatorState, tick: InstigatorTick | None, now: datetime) -> str:
    """Whether a sensor with this last tick is on, failed, silent or stopped.

    It is silent if the tick began longer ago than five of its intervals and a minute: the daemon may be gone.
    """
    if not state.is_running:
        return "stopped"
    interval = getattr(state.instigator_data, "min_interval", None) or 0
    if tick and now.timestamp() > tick.timestamp + _INTERVALS_MISSED * interval + _PATIENCE_SECONDS:
        return "silent"
    return "failed" if tick and tick.is_failure else "on"


def finished_ticks(instance: dg.DagsterInstance, state: InstigatorState, *, limit: int) -> Sequence[InstigatorTick]:
    """The latest ticks, newest first."""
    return instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=limit, statuses=_FINISHED)


def report_of(tick: InstigatorTick) -> TickReport | None:
    """None for a failed tick, and for one of another sensor."""
    if tick.instigator_name != OPTIMIZATION_SENSOR or tick.is_failure:
        return None
    return TickReport.load(tick.cursor)


@dataclass(frozen=True)
class TickResult:
    """What a tick could not do its work for: a server, or the sensor itself; None where it could.

    A tick that succeeded need not have asked Phoenix.
    """

    sensor: str
    at: datetime
    failed: str | None
    cause: str = ""
    phoenix_answered: bool = False


def read_tick(tick: InstigatorTick) -> TickResult:
    sensor, at = tick.instigator_name, datetime.fromtimestamp(tick.timestamp, UTC)
    if tick.is_failure:
        errors = causes(tick)
        for error in errors:
            if server := _SERVERS.get(error.cls_name or ""):
                return TickResult(sensor, at, server, _text(error))
        # Errors of single tenants are raised after Phoenix has answered.
        answered = any(error.cls_name == PlanningFailed.__name__ for error in errors)
        return TickResult(sensor, at, f"sensor {sensor}", _text(errors[-1]) if errors else "", answered)
    report = report_of(tick)
    if report is None:
        return TickResult(sensor, at, None, phoenix_answered=True)
    if report.phoenix_error:
        return TickResult(sensor, at, PHOENIX, report.phoenix_error)
    if report.missing:
        return TickResult(sensor, at, _MODULES, report.missing[0], report.phoenix_asked)
    return TickResult(sensor, at, None, phoenix_answered=report.phoenix_asked)


@dataclass
class Outage:
    """Consecutive ticks of a sensor in which a server, or the sensor itself, failed: the first of them at `since`, and
    at `at` the one that made it an outage, at `ended` a later one in which it worked again."""

    subject: str
    sensor: str
    since: datetime
    at: datetime
    cause: str
    ended: datetime | None = None

    @property
    def over(self) -> bool:
        return self.ended is not None


def find_outages(ticks: Iterable[TickResult], *, after: int) -> list[Outage]:
    """Every `after` consecutive ticks of a sensor that failed for the same reason, in order.

    Sensors that miss the same server are one outage. A tick that did not ask a server is neither for nor against it.
    """
    outages = []
    streaks: dict[tuple[str, str], list[TickResult]] = {}
    running: dict[str, Outage] = {}
    for tick in sorted(ticks, key=lambda tick: tick.at):
        for subject, sensor in [key for key in streaks if key[1] == tick.sensor and key[0] != tick.failed]:
            if tick.phoenix_answered if subject == PHOENIX else tick.failed is None:
                del streaks[subject, sensor]
                if subject in running and not any(
                    of == subject and len(streak) >= after for (of, _), streak in streaks.items()
                ):
                    running.pop(subject).ended = tick.at
        if tick.failed is None:
            continue
        streak = streaks.setdefault((tick.failed, tick.sensor), [])
        streak.append(tick)
        if len(streak) >= after and tick.failed not in running:
            outage = Outage(tick.failed, tick.sensor, streak[0].at, tick.at, tick.cause)
            running[tick.failed] = outage
            outages.append(outage)
    return outages


def causes(tick: InstigatorTick) -> list[SerializableErrorInfo]:
    """The error of a failed tick, and what caused it, down to the first cause."""
    return list(error_chain(tick.error))


def _text(error: SerializableErrorInfo) -> str:
    """The message without the name of its class, which Dagster puts before it."""
    return error.message.partition(": ")[2] or error.message
