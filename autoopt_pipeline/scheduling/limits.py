"""What keeps a tenant's work within bounds beside its schedule: spread, quiet hours, the day's budget. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.tenants.config import WEEKDAYS, Budget, DailyBudget, QuietHours

_DAY = timedelta(days=1)

_FORESEEN = timedelta(days=8)
"""How far ahead the end of quiet hours is looked for: they repeat every week, so later there is none."""


def spread(tenant_id: str, interval: timedelta, share: float) -> timedelta:
    """How much later than its interval the tenant is due: always the same, at most `share` of the interval.

    It depends on nothing but the tenant, so modules with the same interval stay together.
    """
    return timedelta(seconds=int(share * unit_interval(tenant_id) * interval.total_seconds()))


def quiet_until(quiet_hours: Sequence[QuietHours], now: datetime) -> datetime | None:
    """When the quiet hours end that hold `now` (UTC), those that follow without a gap included; None outside them."""
    moment = now
    while moment - now < _FORESEEN:
        ends = [end for hours in quiet_hours for start, end in _around(hours, moment) if start <= moment < end]
        if not ends:
            break
        moment = max(ends)
    return None if moment == now else moment


def _around(hours: QuietHours, moment: datetime) -> Iterable[tuple[datetime, datetime]]:
    """Start and end, in UTC, of the hours that began the day before, and of those of the day, by their own clock."""
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


def midnight(now: datetime) -> datetime:
    """When the day of UTC began that `now` is in."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@dataclass(frozen=True)
class Spending:
    """What was asked of language models, teachers included."""

    lm_calls: int = 0
    lm_tokens: int = 0

    def __add__(self, other: "Spending") -> "Spending":
        return Spending(self.lm_calls + other.lm_calls, self.lm_tokens + other.lm_tokens)


@dataclass(frozen=True)
class Allowance:
    """What the budget of `whose` leaves of a day of UTC."""

    whose: str
    limit: DailyBudget
    spent: Spending

    @property
    def used_up(self) -> str | None:
        """What is spent, in words; None while something is left."""
        for spent, limit, what in (
            (self.spent.lm_calls, self.limit.max_lm_calls, "LM calls"),
            (self.spent.lm_tokens, self.limit.max_tokens, "tokens"),
        ):
            if limit is not None and spent >= limit:
                return f"{spent} of {limit} {what} a day are spent ({self.whose})"
        return None

    def lowered(self, budget: Budget, modules: int) -> Budget:
        """The budget of one of `modules` that run side by side, so that together they stay within what is left.

        At least one call and one token remain: whether something is left at all is for `used_up` to say.
        """
        calls, tokens = self.limit.max_lm_calls, self.limit.max_tokens
        if calls is not None:
            left = max(1, (calls - self.spent.lm_calls) // modules)
            budget = budget.model_copy(update={"max_lm_calls": min(budget.max_lm_calls, left)})
        if tokens is not None:
            left = max(1, (tokens - self.spent.lm_tokens) // modules)
            budget = budget.model_copy(update={"max_tokens": min(budget.max_tokens, left)})
        return budget
