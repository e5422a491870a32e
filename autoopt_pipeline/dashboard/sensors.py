"""The sensors as the pages show them."""

from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from autoopt_pipeline.names import OPTIMIZATION_SENSOR, QUALITY_SENSOR, ROLLOUT_SENSOR
from autoopt_pipeline.run_history.ticks import finished_ticks, sensor_health, sensor_states


@dataclass(frozen=True)
class Sensor:
    """The message of a sensor's last tick, and the sensor's state: on, failed, silent or stopped."""

    name: str
    state: str
    ticked_at: datetime | None
    message: str

    @property
    def title(self) -> str:
        return self.name.removesuffix("_sensor").replace("_", " ")


def read_sensors(instance: dg.DagsterInstance) -> list[Sensor]:
    """The sensors with their last ticks, the most important first."""
    sensors = []
    for name, state in sorted(sensor_states(instance).items()):
        ticks = finished_ticks(instance, state, limit=1)
        tick = ticks[0] if ticks else None
        message = ""
        if tick:
            message = (tick.error.message if tick.error else tick.skip_reason) or f"{len(tick.run_ids)} runs launched"
        ticked_at = datetime.fromtimestamp(tick.timestamp, UTC) if tick else None
        sensors.append(Sensor(name, sensor_health(state, tick, datetime.now(UTC)), ticked_at, message))
    first = (OPTIMIZATION_SENSOR, ROLLOUT_SENSOR, QUALITY_SENSOR)
    return sorted(sensors, key=lambda sensor: sensor.name not in first)
