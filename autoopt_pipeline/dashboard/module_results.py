"""What optimization has achieved for one module, as its page shows it. Pure."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Protocol

from autoopt_pipeline.dashboard.charts import Event, IntervalChart, Measured, TimeChart, interval_chart, time_chart
from autoopt_pipeline.evaluation.quality_monitor import Day
from autoopt_pipeline.evaluation.statistics import Interval, gain_interval, score_interval
from autoopt_pipeline.modules.coercion import number
from autoopt_pipeline.registry.backtests import PlayedNights
from autoopt_pipeline.registry.module_versions import ModuleVersions
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT, dollars_text, seconds_text
from autoopt_pipeline.registry.records import Manifest, Transition, Verdict
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.text import percent

_SERVES, _LIVE = "serves", "live"

_WAITING = frozenset({Verdict.AWAITING_REVIEWS, Verdict.AWAITING_APPROVAL, Verdict.CANARY})


class Outcome(Protocol):
    """The part of a run's outcome that is drawn; scores are 0 to 1."""

    @property
    def at(self) -> datetime: ...
    @property
    def verdict(self) -> str: ...
    @property
    def incumbent_score(self) -> float | None: ...
    @property
    def candidate_score(self) -> float | None: ...
    @property
    def reviews(self) -> int: ...


def quality_over_time(
    outcomes: Iterable[Outcome], transitions: Sequence[Transition], days: Iterable[Day] = ()
) -> TimeChart | None:
    """Lay out the scores of what served and of its candidates on the held-out traces, and of `days` in production.

    None without any.
    """
    measured = [
        point
        for each in sorted(outcomes, key=lambda each: each.at)
        for point in _measured(each.at, each.verdict, each.incumbent_score, each.candidate_score, each.reviews)
    ]
    measured += [_of_day(day) for day in days if day.count]
    measured.sort(key=lambda point: point.at)
    if not measured:
        return None
    first, last = measured[0].at, measured[-1].at
    events = [
        Event(transition.at, "promoted", f"{transition.to_version or BASELINE} became active")
        for transition in transitions
        if first <= transition.at <= last and transition.to_version != transition.from_version
    ]
    return time_chart(measured, events)


def _measured(
    at: datetime, verdict: str | None, incumbent: float | None, candidate: float | None, reviews: int
) -> Iterator[Measured]:
    """Yield what served and its candidate, as far as their scores are known on some reviewed traces."""
    promoted = verdict in {Verdict.PROMOTED, "approved"}
    for score, kind, line in (
        (incumbent, _SERVES, _SERVES),
        (candidate, "promoted" if promoted else "candidate", _SERVES if promoted else ""),
    ):
        # People can report an outcome by hand, and whoever can write to the store, a backtest.
        if score is None or not 0 <= score <= 1 or reviews <= 0:
            continue
        interval = score_interval(score, reviews)
        title = (
            f"{at:%Y-%m-%d %H:%M} UTC, {kind}: {percent(score)} % of {reviews} reviewed traces "
            f"({percent(interval.low)} to {percent(interval.high)} %)"
        )
        yield Measured(at, score, interval.low, interval.high, kind, title, line)


def _of_day(day: Day) -> Measured:
    score = min(1.0, day.total / day.count)
    interval = score_interval(score, day.count)
    between = f"{percent(interval.low)} to {percent(interval.high)} %"
    title = f"{day.day} in production: {percent(score)} % of {day.count} outcomes ({between})"
    noon = datetime.combine(day.day, time(12), UTC)
    return Measured(noon, score, interval.low, interval.high, _LIVE, title, _LIVE)


def backtest_over_time(played: PlayedNights) -> TimeChart | None:
    """Lay out the nights of a backtest. None where no night compared a candidate with the incumbent."""
    measured, events = list[Measured](), list[Event]()
    for night in played.nights:
        measured += _measured(night.at, night.verdict, night.incumbent_score, night.candidate_score, night.reviews_used)
        if night.promoted or night.failed or night.verdict in _WAITING:
            said = "failed" if night.failed else str(night.verdict).replace("_", " ")
            kind = "promoted" if night.promoted else "failed" if night.failed else "waiting"
            events.append(Event(night.at, kind, f"{night.at:%Y-%m-%d}: {said}"))
    if not measured:
        return None
    return time_chart(measured, events, start=played.nights[0].at, end=played.nights[-1].at)


@dataclass(frozen=True)
class Bar:
    """One of several amounts: its `share` of the largest, 0 to 1, and how people read it."""

    name: str
    share: float
    text: str
    note: str = ""


@dataclass(frozen=True)
class BeforeAndAfter:
    """A version beside the one that it replaced, on the traces that decided. Scores are 0 to 1."""

    version: str
    before: str
    scores: tuple[float | None, float | None]
    gain: float
    interval: Interval
    chart: IntervalChart
    fixed: int
    broken: int
    traces: int
    costs: Sequence[tuple[str, Sequence[Bar]]]
    raced: Sequence[Bar]


def before_and_after(programs: ModuleVersions) -> BeforeAndAfter | None:
    """Compare the active version with the one before it. None for the baseline and where the gate decided nothing."""
    manifest = next((manifest for manifest in programs.manifests if manifest.version == programs.active), None)
    if manifest is None:
        return None
    gate = manifest.gate
    if not all(math.isfinite(gate.get(name, math.nan)) for name in ("gain", "fixed", "broken", "cases")):
        return None
    fixed, broken, traces = int(gate["fixed"]), int(gate["broken"]), int(gate["cases"])
    if traces <= 0:
        return None
    interval = gain_interval(gate["gain"], fixed + broken, traces)
    return BeforeAndAfter(
        manifest.version,
        manifest.parent or BASELINE,
        (manifest.incumbent_score, manifest.candidate_score),
        gate["gain"],
        interval,
        interval_chart(interval.low, gate["gain"], interval.high),
        fixed,
        broken,
        traces,
        list(_costs(manifest)),
        race(manifest),
    )


def _costs(manifest: Manifest) -> Iterator[tuple[str, Sequence[Bar]]]:
    """Yield what a decision costs before and after, as far as both are known."""
    before, after = manifest.costs.get(INCUMBENT), manifest.costs.get(CANDIDATE)
    if before is None or after is None:
        return
    yield "Tokens a decision", _pair(before.tokens, after.tokens, "{:,.0f}".format)
    if before.dollars is not None and after.dollars is not None and (before.dollars or after.dollars):
        yield "Dollars a thousand decisions", _pair(1000 * before.dollars, 1000 * after.dollars, dollars_text)
    if before.seconds_p95 is not None and after.seconds_p95 is not None:
        yield "Time of the slowest in 20", _pair(before.seconds_p95, after.seconds_p95, seconds_text)


def _pair(before: float, after: float, text: Callable[[float], str]) -> list[Bar]:
    most = max(before, after) or 1.0
    return [Bar("before", before / most, text(before)), Bar("after", after / most, text(after))]


def race(manifest: Manifest) -> list[Bar]:
    """Return the candidates of the search that made a version, with their scores on dev, the furthest and best first.

    Whoever can write to the store can write anything into a manifest, so what is no number counts as 0.
    """
    tried = [
        (number(each.get("judged_on")) or 0.0, number(each.get("dev_score")) or 0.0, each) for each in manifest.tried
    ]
    return [
        Bar(str(each.get("optimizer", ""))[:100], min(max(score, 0.0), 1.0), f"{percent(score)} %", f"of {traces:.0f}")
        for traces, score, each in sorted(tried, key=lambda row: (-row[0], -row[1]))
    ]
