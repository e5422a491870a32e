"""Services that sensors miss look after look, and the all-clear once they work again."""

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from autoopt_pipeline.monitoring.alerts.models import REPEAT_AFTER, Alert, Kind, make_alert
from autoopt_pipeline.run_history.events import Ticked


class Outage(BaseModel):
    """Looks in a row that one sensor lost to one service."""

    model_config = ConfigDict(frozen=True)

    looks: int
    since: datetime
    told_at: datetime | None = None


Outages = dict[str, dict[str, Outage]]
"""By service, then by the sensor that misses it."""


def tell_outages(known: Outages, ticks: Iterable[Ticked], *, now: datetime, after: int) -> tuple[Outages, list[Alert]]:
    """Take looks, oldest first. Sensors that miss the same service are one trouble, told once a day while it lasts.

    What was told ends with a look that the service answered, and not with other trouble.
    """
    outages = {service: dict(sensors) for service, sensors in known.items()}
    alerts: list[Alert] = []
    for tick in ticks:
        for service, sensors in outages.items():
            outage = sensors.get(tick.sensor)
            if outage is None or service == tick.service:
                continue
            works = tick.works is None or service in tick.works
            in_a_row = tick.service is None or outage.told_at is not None
            if works or not in_a_row:
                del sensors[tick.sensor]
                if outage.told_at and not any(other.told_at for other in sensors.values()):
                    alerts.append(_all_clear(service, outage, now))
        if tick.service is None:
            continue
        sensors = outages.setdefault(tick.service, {})
        before = sensors.get(tick.sensor)
        looks, since = (before.looks + 1, before.since) if before else (1, tick.at)
        told_at = max((other.told_at for other in sensors.values() if other.told_at), default=None)
        if looks >= after and (told_at is None or tick.at - told_at >= REPEAT_AFTER):
            told_at = tick.at
            summary = f"{tick.service} failed {looks} looks in a row, since {since:%Y-%m-%d %H:%M:%S} UTC"
            alerts.append(make_alert(Kind.UNREACHABLE, now, summary, detail=tick.cause))
        sensors[tick.sensor] = Outage(looks=looks, since=since, told_at=told_at if looks >= after else None)
    return {service: sensors for service, sensors in outages.items() if sensors}, alerts


def _all_clear(service: str, outage: Outage, now: datetime) -> Alert:
    detail = f"it had failed since {outage.since:%Y-%m-%d %H:%M:%S} UTC"
    return make_alert(Kind.REACHABLE, now, f"{service} works again", detail=detail)
