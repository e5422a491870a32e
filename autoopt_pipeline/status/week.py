"""What optimization did in the last seven days, over all tenants."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean, stdev

import dagster as dg

from autoopt_pipeline.evaluation.statistics import Z95, Interval
from autoopt_pipeline.modules.catalog import module_names
from autoopt_pipeline.modules.coercion import number
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.run_history.module_events import EventKind, ModuleEvent, newest_events
from autoopt_pipeline.run_history.outcomes import ROLLED_BACK

WEEK = timedelta(days=7)

# Most events of each kind that are read of one module. Each outcome holds the report of its run.
_READ = 300

# Fewest promotions whose mean gain has an interval.
_MIN_GAINS = 2


@dataclass(frozen=True)
class WeekEvents:
    """The outcomes of runs and the rollbacks of the last seven days. `since` is later (UTC) if there were too many."""

    since: datetime
    outcomes: Sequence[ModuleEvent]
    rollbacks: Sequence[ModuleEvent]


@dataclass(frozen=True)
class Week:
    """Totals since a moment (UTC). The gain is the mean of the promoted versions' gains on held-out traces, -1 to 1.

    `lm_dollars` is None where a run asked a model whose price it did not know.
    """

    since: datetime
    runs: int
    promotions: int
    rollbacks: int
    gain: float | None
    interval: Interval | None
    lm_calls: int
    lm_tokens: int
    lm_dollars: float | None


def read_week(instance: dg.DagsterInstance, now: datetime) -> WeekEvents:
    """Read the events of all tenants: two queries for each module."""
    begins = now - WEEK
    outcomes: list[ModuleEvent] = []
    rollbacks: list[ModuleEvent] = []
    for module in module_names():
        for kind, events in ((EventKind.MATERIALIZATION, outcomes), (EventKind.OBSERVATION, rollbacks)):
            newest = newest_events(instance, kind, module, since=now - WEEK, limit=_READ)
            events += newest.items
            begins = max(begins, newest.reaches or begins)
    return WeekEvents(
        begins,
        [event for event in outcomes if event.at >= begins],
        [event for event in rollbacks if event.at >= begins and event.values.get("event") == ROLLED_BACK],
    )


def summarize(events: WeekEvents, sees: Callable[[str], bool]) -> Week:
    """Add up what concerns the tenants that somebody may see."""
    outcomes = [event for event in events.outcomes if event.tenant and sees(event.tenant)]
    promoted = [event for event in outcomes if event.values.get("verdict") == Verdict.PROMOTED]
    gains = [gain for event in promoted if (gain := number(event.values.get("gain"))) is not None]
    dollars = [number(event.values.get("lm_dollars")) for event in outcomes if number(event.values.get("lm_calls"))]
    known = [spent for spent in dollars if spent is not None]
    return Week(
        since=events.since,
        runs=len({event.run_id for event in outcomes}),
        promotions=len(promoted),
        rollbacks=sum(bool(event.tenant and sees(event.tenant)) for event in events.rollbacks),
        gain=fmean(gains) if gains else None,
        interval=_interval(gains),
        lm_calls=int(sum(number(event.values.get("lm_calls")) or 0 for event in outcomes)),
        lm_tokens=int(sum(number(event.values.get("lm_tokens")) or 0 for event in outcomes)),
        lm_dollars=sum(known) if known == dollars else None,
    )


def _interval(gains: Sequence[float]) -> Interval | None:
    """The normal interval of a mean over promotions."""
    if len(gains) < _MIN_GAINS:
        return None
    half = Z95 * stdev(gains) / math.sqrt(len(gains))
    return Interval(fmean(gains) - half, fmean(gains) + half)
