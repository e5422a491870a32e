"""Failed runs: what has the same cause is one message, and modules that fail again and again are named.

The first failure of a cause is told at once; more modules that it hits are told together, once an hour at most; and
one module's failures of one cause once a day, until it succeeds.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from autoopt_pipeline.monitoring.alerts.models import (
    MAX_AFFECTED,
    REPEAT_AFTER,
    Affected,
    Alert,
    Kind,
    beginning_of,
    make_alert,
)
from autoopt_pipeline.run_history.events import ModuleFailed, ModuleSucceeded

GROUP_INTERVAL = timedelta(hours=1)
"""Least time between two messages on one cause."""

MAX_CAUSES = 10
"""Messages on causes that one look makes; the causes beyond share one."""


class Streak(NamedTuple):
    """A module's failures in a row: how many, the last cause and when it was taken in, and whether the row was told."""

    failures: int
    cause: str
    taken_at: datetime
    told: bool


class Cause(BaseModel):
    """When a cause was last told, and what it has hit since: `total` modules, of which `held` are the first."""

    model_config = ConfigDict(frozen=True)

    text: str
    told_at: datetime | None = None
    held: tuple[Affected, ...] = ()
    total: int = 0

    def holding(self, affected: Affected) -> "Cause":
        held = (*self.held, affected)[:MAX_AFFECTED]
        return self.model_copy(update={"held": held, "total": self.total + 1})


class Failures(BaseModel):
    """What is known of failures: the rows by `tenant/module`, and the causes by their fingerprint."""

    model_config = ConfigDict(frozen=True)

    streaks: dict[str, Streak] = {}
    causes: dict[str, Cause] = {}


def tell_failures(
    known: Failures, events: Iterable[ModuleFailed | ModuleSucceeded], *, now: datetime, after: int
) -> tuple[Failures, list[Alert]]:
    """Take what ended, oldest first. A module that failed `after` times in a row fails repeatedly."""
    streaks, causes = dict(known.streaks), dict(known.causes)
    repeated, recovered = [], []
    for event in events:
        key = f"{event.tenant}/{event.module}"
        streak = streaks.pop(key, None)
        if isinstance(event, ModuleSucceeded):
            if streak and streak.told:
                detail = f"after {streak.failures} failures in a row"
                recovered.append(Affected(tenant=event.tenant, module=event.module, detail=detail))
            continue
        cause = fingerprint(event)
        taken_at = streak.taken_at if streak and streak.cause == cause else None
        if taken_at is None or event.at - taken_at >= REPEAT_AFTER:
            taken_at = event.at
            failed = causes.get(cause, Cause(text=beginning_of(event.cause)))
            causes[cause] = failed.holding(_affected(event, event.cause))
        failures = streak.failures + 1 if streak else 1
        told = streak.told if streak else False
        if failures >= after and not told:
            told = True
            repeated.append(_affected(event, f"{failures} in a row: {event.cause}"))
        streaks[key] = Streak(failures, cause, taken_at, told)

    due = {
        key: cause
        for key, cause in causes.items()
        if cause.held and (cause.told_at is None or now - cause.told_at >= GROUP_INTERVAL)
    }
    causes |= {key: Cause(text=cause.text, told_at=now) for key, cause in due.items()}
    kept = {key: c for key, c in causes.items() if c.held or (c.told_at and now - c.told_at < GROUP_INTERVAL)}
    alerts = _about_causes(due, now)
    if repeated:
        alerts.append(make_alert(Kind.FAILING_REPEATEDLY, now, f"{_named(repeated)} keeps failing", affected=repeated))
    if recovered:
        alerts.append(make_alert(Kind.RECOVERED, now, f"{_named(recovered)} works again", affected=recovered))
    return Failures(streaks=streaks, causes=kept), alerts


def fingerprint(event: ModuleFailed) -> str:
    """The same for causes that differ only in whom they hit: the tenant, the module, and ids, times and counts."""
    names = rf"(?<!\w)(?:{re.escape(event.tenant)}|{re.escape(event.module)})(?!\w)"
    text = re.sub(rf"{names}|\b[0-9a-f]{{8,}}\b|\d+", "#", event.cause)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _affected(event: ModuleFailed, detail: str) -> Affected:
    return Affected(
        tenant=event.tenant, module=event.module, detail=beginning_of(detail), run_id=event.run_id, url=event.url
    )


def _about_causes(due: Mapping[str, Cause], now: datetime) -> list[Alert]:
    """The causes that hit most have a message each, the others share one."""
    ordered = sorted(due.values(), key=lambda cause: -cause.total)
    alerts = [
        make_alert(
            Kind.RUN_FAILED,
            now,
            f"{_named(cause.held, cause.total)} failed",
            detail=cause.text,
            affected=cause.held,
            total=cause.total,
        )
        for cause in ordered[:MAX_CAUSES]
    ]
    if others := ordered[MAX_CAUSES:]:
        total = sum(cause.total for cause in others)
        held = [cause.held[0] for cause in others]
        summary = f"{_named(held, total)} failed for {len(others)} other causes"
        alerts.append(make_alert(Kind.RUN_FAILED, now, summary, affected=held, total=total))
    return alerts


def _named(affected: Iterable[Affected], total: int | None = None) -> str:
    """`acme/routing`, or `acme/routing and 4 more`."""
    listed = list(affected)
    more = (total or len(listed)) - 1
    first = f"{listed[0].tenant}/{listed[0].module}"
    return f"{first} and {more} more" if more else first
