"""Alerts on their way to one receiver: kept until they arrive, tried again with growing waits, given up after a day."""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from time import monotonic

from pydantic import BaseModel, ConfigDict

from autoopt_pipeline.errors import AlertNotDelivered
from autoopt_pipeline.monitoring.alerts.models import Alert

GIVE_UP_AFTER = timedelta(days=1)
MAX_KEPT = 100
"""Alerts that wait for one receiver; of more, the oldest are given up."""

_SECONDS_PER_LOOK = 10
"""How long one look goes on sending to one receiver. The next look sends what is left."""

_FIRST_WAIT = timedelta(seconds=30)
_LONGEST_WAIT = timedelta(minutes=15)


class Outbox(BaseModel):
    """What waits for one receiver, oldest first, and when it is tried again after `failures` in a row."""

    model_config = ConfigDict(frozen=True)

    waiting: tuple[Alert, ...] = ()
    failures: int = 0
    next_try: datetime | None = None

    def put(self, alerts: Iterable[Alert]) -> "Outbox":
        return self.model_copy(update={"waiting": (*self.waiting, *alerts)})

    def given_up(self, now: datetime) -> tuple[Alert, ...]:
        """What is too old, or too much, to be tried any longer."""
        surplus = self.waiting[:-MAX_KEPT]
        return tuple(a for a in self.waiting if a in surplus or now - a.at >= GIVE_UP_AFTER)

    def without(self, alerts: Iterable[Alert]) -> "Outbox":
        ids = {alert.id for alert in alerts}
        return self.model_copy(update={"waiting": tuple(a for a in self.waiting if a.id not in ids)})


def deliver(
    outbox: Outbox, send: Callable[[Alert], object], *, now: datetime
) -> tuple[Outbox, AlertNotDelivered | None]:
    """Send what waits, unless it is too early to try again. Ends with the first failure, which is returned.

    So a receiver that is down costs one attempt a look at first, and soon one in a quarter of an hour.
    """
    if outbox.next_try and now < outbox.next_try:
        return outbox, None
    began = monotonic()
    for alert in outbox.waiting:
        if monotonic() - began > _SECONDS_PER_LOOK:
            break
        try:
            send(alert)
        except AlertNotDelivered as e:
            wait = min(_FIRST_WAIT * 2 ** min(outbox.failures, 10), _LONGEST_WAIT)
            return outbox.model_copy(update={"failures": outbox.failures + 1, "next_try": now + wait}), e
        outbox = Outbox(waiting=outbox.waiting[1:])
    return outbox, None
