"""The timeline of a backtest: where its marks are in an SVG, whose template is `backtest_timeline.html`."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoopt_pipeline.registry.backtests import Night, PlayedNights
from autoopt_pipeline.text import percent

WIDTH, HEIGHT = 640, 140
_EDGE = 10
# Where nights without scores are marked.
_GROUND = HEIGHT - 6
_FLOOR = HEIGHT - 20


@dataclass(frozen=True)
class Mark:
    """One night: where it is, which class colours it, and what it says."""

    x: float
    y: float
    kind: str
    text: str


@dataclass(frozen=True)
class Timeline:
    """The marks of one variant, oldest first, and the incumbent's scores as the points of a polyline."""

    marks: Sequence[Mark]
    incumbent: str
    width: int = WIDTH
    height: int = HEIGHT
    floor: int = _FLOOR


def timeline(played: PlayedNights) -> Timeline:
    """Place the nights from left to right, and their scores from 0 at the bottom to 1 at the top."""
    step = (WIDTH - 2 * _EDGE) / max(1, len(played.nights) - 1)
    places = [(round(_EDGE + step * place, 1), night) for place, night in enumerate(played.nights)]
    scored = [(x, night.incumbent_score) for x, night in places if night.incumbent_score is not None]
    return Timeline(
        marks=[_mark(x, night) for x, night in places],
        incumbent=" ".join(f"{x},{_height(score)}" for x, score in scored),
    )


def _mark(x: float, night: Night) -> Mark:
    day = f"{night.at:%Y-%m-%d}"
    if not night.ran:
        return Mark(x, _GROUND, "skipped", f"{day}: {night.decision.replace('_', ' ')}")
    if night.candidate_score is None:
        said = "failed" if night.failed else str(night.verdict).replace("_", " ")
        return Mark(x, _GROUND, "failed" if night.failed else str(night.verdict), f"{day}: {said}")
    scores = f"{percent(night.incumbent_score or 0.0)} to {percent(night.candidate_score)} %"
    said = f"{day}: {str(night.verdict).replace('_', ' ')}, {scores}"
    return Mark(x, _height(night.candidate_score), str(night.verdict), said)


def _height(score: float) -> float:
    return round(_FLOOR - (_FLOOR - _EDGE) * min(max(score, 0.0), 1.0), 1)
