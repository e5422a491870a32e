"""Whether a promotion holds in production: two versions that serve side by side are compared while outcomes come in.

Pure. Only what was decided at the same time is compared, so a drift of the traffic is blamed on no version.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from statistics import fmean

from autoopt_pipeline.evaluation.statistics import log_e_value
from autoopt_pipeline.modules.online_score import LiveOutcome

ALPHA = 0.05
"""Chance that a version which is no worse is ever taken for worse, and one that is no better for better."""

ENOUGH = 500
"""Comparisons after which a version that is not clearly worse is left alone. By then a loss of 10 points is found in
about 9 of 10 watches, one of 20 points in all (bench/README.md)."""

MAX_DECISIONS = 10_000
"""Decisions that one look reads at most; a watch ends there, for more would burden Phoenix."""


class WatchVerdict(StrEnum):
    WATCHING = "watching"
    WORSE = "worse"
    BETTER = "better"
    NO_WORSE = "no_worse"
    ENDED = "ended"


@dataclass(frozen=True)
class Side:
    """What one version decided since the watch began, and the decisions of which it is known how good they were."""

    decisions: int = 0
    outcomes: tuple[LiveOutcome, ...] = ()

    @property
    def score(self) -> float | None:
        """Mean outcome, 0 to 1; None where none is known."""
        return fmean(outcome.score for outcome in self.outcomes) if self.outcomes else None

    def __str__(self) -> str:
        score = "" if self.score is None else f", on average {100 * self.score:.1f} %"
        return f"{len(self.outcomes)} outcomes of {self.decisions} decisions{score}"


@dataclass(frozen=True)
class RolloutAnalysis:
    """What is known of a watch at one moment. `p_worse` and `p_better` hold however often one looks."""

    verdict: WatchVerdict
    reason: str
    newer: Side = Side()
    older: Side = Side()
    comparisons: int = 0
    p_worse: float = 1.0
    p_better: float = 1.0


def judge_watch(newer: Side, older: Side, *, age: timedelta, longest: timedelta) -> RolloutAnalysis:
    """Compare the newer version with the older one. `age` is how long the watch has been going on."""
    losses = differences(older.outcomes, newer.outcomes)
    p_worse, p_better = _p(losses), _p([-loss for loss in losses])
    if p_worse <= ALPHA:
        verdict, why = WatchVerdict.WORSE, f"clearly worse, p {p_worse:.2g}"
    elif p_better <= ALPHA:
        verdict, why = WatchVerdict.BETTER, f"clearly better, p {p_better:.2g}"
    elif len(losses) >= ENOUGH or newer.decisions + older.decisions >= MAX_DECISIONS:
        verdict, why = WatchVerdict.NO_WORSE, "enough, and not clearly worse"
    elif age >= longest:
        days = longest.total_seconds() / 86400
        verdict, why = WatchVerdict.NO_WORSE, f"not clearly worse after {days:.4g} days"
    elif newer.decisions + older.decisions:
        verdict, why = WatchVerdict.WATCHING, f"open, p {min(p_worse, p_better):.2g}"
    else:
        verdict, why = WatchVerdict.WATCHING, "open, for no span says yet that it was decided by one of the two"
    reason = f"{why}: {newer}; its predecessor {older}; {len(losses)} comparisons"
    return RolloutAnalysis(verdict, reason, newer, older, len(losses), p_worse, p_better)


def differences(one: Sequence[LiveOutcome], other: Sequence[LiveOutcome]) -> list[float]:
    """Differences in score, one less other, of outcomes that became known at about the same time, oldest first.

    As soon as both sides have outcomes, the means of what each has are compared, and both begin anew. Who comes next
    does not depend on how good an outcome is, so a difference is 0 on average where the versions are equal, however
    the traffic drifts. Verdicts that were stored at once, as judges do, come in the order of their decisions.
    """
    arrivals = [(each, 0) for each in one] + [(each, 1) for each in other]
    found: list[float] = []
    pending: tuple[list[float], list[float]] = ([], [])
    for outcome, side in sorted(arrivals, key=lambda arrival: (arrival[0].known_at, arrival[0].decided_at)):
        pending[side].append(outcome.score)
        if all(pending):
            found.append(fmean(pending[0]) - fmean(pending[1]))
            pending = ([], [])
    return found


def _p(gains: Sequence[float]) -> float:
    return min(1.0, math.exp(-log_e_value(gains))) if gains else 1.0
