"""Whether a sensor ticks, told from Dagster's own records."""

from datetime import UTC, datetime, timedelta

import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorTick,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import SerializableErrorInfo

from autoopt_pipeline.run_history.ticks import sensor_health

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LOCATION = RegisteredCodeLocationOrigin("location")  # ty: ignore[abstract-class-instantiation]
ORIGIN = RemoteInstigatorOrigin(RemoteRepositoryOrigin(LOCATION, "repository"), "auto_optimization_sensor")


def state(status: InstigatorStatus = InstigatorStatus.RUNNING) -> InstigatorState:
    return InstigatorState(ORIGIN, InstigatorType.SENSOR, status, SensorInstigatorData(min_interval=60))


def tick(ago: timedelta, status: TickStatus = TickStatus.SKIPPED) -> InstigatorTick:
    at = (NOW - ago).timestamp()
    error = SerializableErrorInfo("it broke", [], None) if status is TickStatus.FAILURE else None
    data = TickData("origin", "auto_optimization_sensor", InstigatorType.SENSOR, status, at, error=error)
    return InstigatorTick(1, data)


@pytest.mark.parametrize(
    ("known", "last", "health"),
    [
        (state(), None, "on"),
        (state(), tick(timedelta(minutes=5)), "on"),
        (state(), tick(timedelta(minutes=5), TickStatus.FAILURE), "failed"),
        (state(), tick(timedelta(minutes=7)), "silent"),
        (state(), tick(timedelta(minutes=7), TickStatus.FAILURE), "silent"),
        (state(InstigatorStatus.STOPPED), tick(timedelta(minutes=7)), "stopped"),
        (state(InstigatorStatus.DECLARED_IN_CODE), tick(timedelta(minutes=1)), "on"),
    ],
)
def test_a_sensor_is_silent_when_its_ticks_stop(
    known: InstigatorState, last: InstigatorTick | None, health: str
) -> None:
    assert sensor_health(known, last, NOW) == health
