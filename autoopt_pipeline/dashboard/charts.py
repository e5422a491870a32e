"""Where the parts of a chart are drawn: places in percent of the plot, from its top left corner. Pure.

`charts.html` draws them as SVG, whose text keeps its size at every width, without JavaScript.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

# Scores on an axis are multiples of the first of these, in percent, that needs at most `_SCORES` of them.
_STEPS, _SCORES = (5, 10, 20), 6

# Most times under the axis; a phone has no room for more.
_TIMES = 4


@dataclass(frozen=True)
class Measured:
    """A score (0 to 1) at a moment (UTC) with its interval. `kind` and `title` say of what.

    Those with the same name of a `line` are joined.
    """

    at: datetime
    score: float
    low: float
    high: float
    kind: str
    title: str
    line: str = ""


@dataclass(frozen=True)
class Event:
    """A change of what serves at a moment (UTC)."""

    at: datetime
    kind: str
    title: str


@dataclass(frozen=True)
class Dot:
    """A measured score at its place, with the ends of its interval."""

    x: float
    y: float
    low: float
    high: float
    measured: Measured


@dataclass(frozen=True)
class TimeChart:
    """Scores over time. `lines` are the points of one polyline for each series, and `events` have their x.

    `scores` are the texts of the y axis from top to bottom, and `times` those of the x axis from left to right; both
    are evenly spaced.
    """

    dots: Sequence[Dot]
    lines: Sequence[tuple[str, str]]
    events: Sequence[tuple[float, Event]]
    scores: Sequence[str]
    times: Sequence[str]


def time_chart(
    measured: Iterable[Measured],
    events: Iterable[Event] = (),
    *,
    start: datetime | None = None,
    end: datetime | None = None,
) -> TimeChart:
    """Lay out scores over time, by default from the first to the last. Those of the same moment keep their order.

    Raises ValueError without scores.
    """
    points = sorted(measured, key=lambda point: point.at)
    if not points:
        raise ValueError("there is nothing to draw")
    start, end = start or points[0].at, end or points[-1].at
    shown = [event for event in events if start <= event.at <= end]
    low, high = 100 * min(point.low for point in points), 100 * max(point.high for point in points)
    bottom, top, step = next(
        axis for axis in map(partial(_axis, low, high), _STEPS) if axis[1] - axis[0] <= _SCORES * axis[2]
    )

    def x(moment: datetime) -> float:
        return round(100 * (moment - start) / (end - start), 2) if end > start else 50.0

    def y(score: float) -> float:
        return round(100 * (top - 100 * score) / (top - bottom), 2)

    dots = [Dot(x(point.at), y(point.score), y(point.low), y(point.high), point) for point in points]
    return TimeChart(
        dots=dots,
        lines=[
            (line, " ".join(f"{dot.x},{dot.y}" for dot in dots if dot.measured.line == line))
            for line in dict.fromkeys(point.line for point in points if point.line)
        ],
        events=[(x(event.at), event) for event in shown],
        scores=[str(score) for score in range(top, bottom - 1, -step)],
        times=_times(start, end),
    )


def _axis(low: float, high: float, step: int) -> tuple[int, int, int]:
    """Return the ends of an axis, in percent, and its step."""
    bottom = step * math.floor(round(low, 4) / step)
    return bottom, max(step * math.ceil(round(high, 4) / step), bottom + step), step


def _times(start: datetime, end: datetime) -> list[str]:
    if start == end:
        return [f"{start:%Y-%m-%d %H:%M}"]
    form = "%Y-%m-%d" if end - start >= timedelta(days=_TIMES) else "%m-%d %H:%M"
    step = (end - start) / (_TIMES - 1)
    return [f"{start + n * step:{form}}" for n in range(_TIMES)]


@dataclass(frozen=True)
class IntervalChart:
    """A difference with its interval, on an axis that contains 0: `low`, `high`, `middle` and `zero` are places."""

    low: float
    middle: float
    high: float
    zero: float
    ends: tuple[float, float]


def interval_chart(low: float, middle: float, high: float) -> IntervalChart:
    """Lay out a difference of scores, -1 to 1. The ends of the axis are multiples of 5 points."""
    left = min(-0.05, math.floor(low * 20) / 20)
    right = max(0.05, math.ceil(high * 20) / 20)

    def x(value: float) -> float:
        return round(100 * (value - left) / (right - left), 2)

    return IntervalChart(x(low), x(middle), x(high), x(0.0), (left, right))
