"""Jitter and quiet hours. Pure."""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.tenants.config import WEEKDAYS, QuietHours

_DAY = timedelta(days=1)

_FORESEEN = timedelta(days=8)
"""How far ahead the end of quiet hours is searched: they repeat every week, so there is none later."""


def spread(tenant_id: str, interval: timedelta, share: float) -> timedelta:
    """The tenant's jitter: how much later than its interval it is due, at most `share` of the interval.

    It depends on the tenant alone, so modules with the same interval stay together.
    """
    return timedelta(seconds=int(share * unit_interval(tenant_id) * interval.total_seconds()))


def quiet_until(quiet_hours: Sequence[QuietHours], now: datetime) -> datetime | None:
    """The end of the quiet hours around `now` (UTC), with those that follow without a gap; None outside of any."""
    moment = now
    while moment - now < _FORESEEN:
        ends = [end for hours in quiet_hours for start, end in _around(hours, moment) if start <= moment < end]
        if not ends:
            break
        moment = max(ends)
    return None if moment == now else moment


def _around(hours: QuietHours, moment: datetime) -> Iterable[tuple[datetime, datetime]]:
    """Start and end, in UTC, of the quiet hours of yesterday and of today, by their own clock."""
    zone = ZoneInfo(hours.time_zone)
    today = moment.astimezone(zone).date()
    days = 0 if hours.start < hours.end else 1
    for day in (today - _DAY, today):
        if WEEKDAYS[day.weekday()] in hours.weekdays:
            yield _moment(day, hours.start, zone), _moment(day + days * _DAY, hours.end, zone)


def _moment(day: date, clock: str, zone: ZoneInfo) -> datetime:
    """In UTC. A time that the clock shows twice is the first one, and one that it skips counts by the offset before the
    gap, as in RFC 5545, 3.3.5.
    """
    hour, minute = map(int, clock.split(":"))
    wall = datetime(day.year, day.month, day.day, tzinfo=zone) + timedelta(hours=hour, minutes=minute)
    return wall.astimezone(UTC)
