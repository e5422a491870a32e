"""Rollout analysis: compares two versions that serve side by side, as their outcomes become known. Does no I/O.

Only outcomes of the same time are compared, so a drift of the traffic affects both versions alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from statistics import fmean

from autoopt_pipeline.evaluation.statistics import log_e_value
from autoopt_pipeline.modules.online_score import LiveOutcome

# Probability that the analysis ever calls an equal version worse or better.
ALPHA = 0.05

# Comparisons after which a rollout ends if the newer version is not clearly worse. By then the analysis finds a loss
# of 10 points in about 9 of 10 rollouts, and one of 20 points in all (bench/README.md).
ENOUGH = 500

# Maximum number of decisions that one analysis reads. A rollout ends there, because more would burden Phoenix.
MAX_DECISIONS = 10_000


class AnalysisStatus(StrEnum):
    OPEN = "open"
    WORSE = "worse"
    BETTER = "better"
    NOT_WORSE = "not_worse"
    UNPROVEN = "unproven"
    ENDED = "ended"


@dataclass(frozen=True)
class VersionSample:
    """The number of a version's decisions since the rollout began, and their known outcomes."""

    decisions: int = 0
    outcomes: tuple[LiveOutcome, ...] = ()

    @property
    def score(self) -> float | None:
        """Mean outcome, 0 to 1; None without outcomes."""
        return fmean(outcome.score for outcome in self.outcomes) if self.outcomes else None

    def __str__(self) -> str:
        score = "" if self.score is None else f", on average {100 * self.score:.1f} %"
        return f"{len(self.outcomes)} outcomes of {self.decisions} decisions{score}"


@dataclass(frozen=True)
class ReviewComparison:
    """Reviewed disagreements of both versions on the same requests: the newer version's gains, in the order of review.

    `to_review` disagreements have no review yet.
    """

    gains: tuple[float, ...] = ()
    to_review: int = 0

    def __str__(self) -> str:
        won, lost = sum(gain > 0 for gain in self.gains), sum(gain < 0 for gain in self.gains)
        return f"{len(self.gains)} reviewed disagreements ({won} for it, {lost} for its predecessor)"


@dataclass(frozen=True)
class RolloutAnalysis:
    """The result of one analysis. `p_worse` and `p_better` stay valid however often the analysis is repeated."""

    status: AnalysisStatus
    reason: str
    newer: VersionSample = VersionSample()
    older: VersionSample = VersionSample()
    comparisons: int = 0
    p_worse: float = 1.0
    p_better: float = 1.0
    reviews: ReviewComparison | None = None


def analyze_rollout(
    newer: VersionSample,
    older: VersionSample,
    *,
    age: timedelta,
    longest: timedelta,
    proving_alpha: float | None = None,
    reviews: ReviewComparison | None = None,
) -> RolloutAnalysis:
    """Compare the newer version with the older one. `age` is the time since the rollout began, `longest` its limit.

    `reviews` is there as soon as traces were drawn for people to review, whether or not they have.
    With `proving_alpha`, the newer version must prove better at this alpha. Until then it is `open`, at the limit
    `unproven`.
    """
    losses = differences(older.outcomes, newer.outcomes)
    gains = [[-loss for loss in losses], *([list(reviews.gains)] if reviews else [])]
    p_worse, p_better = _p_value([[-gain for gain in part] for part in gains]), _p_value(gains)
    if p_worse <= ALPHA:
        status, cause = AnalysisStatus.WORSE, f"clearly worse, p {p_worse:.2g}"
    elif p_better <= (proving_alpha or ALPHA):
        status, cause = AnalysisStatus.BETTER, f"clearly better, p {p_better:.2g}"
    elif proving_alpha and (age >= longest or newer.decisions + older.decisions >= MAX_DECISIONS):
        status, cause = AnalysisStatus.UNPROVEN, f"not proven better, p {p_better:.2g}, alpha {proving_alpha:.2g}"
    elif proving_alpha:
        status, cause = AnalysisStatus.OPEN, f"open, p {p_better:.2g}, alpha {proving_alpha:.2g}"
    elif len(losses) >= ENOUGH or newer.decisions + older.decisions >= MAX_DECISIONS:
        status, cause = AnalysisStatus.NOT_WORSE, "enough, and not clearly worse"
    elif age >= longest:
        days = longest.total_seconds() / 86400
        status, cause = AnalysisStatus.NOT_WORSE, f"not clearly worse after {days:.4g} days"
    elif newer.decisions + older.decisions:
        status, cause = AnalysisStatus.OPEN, f"open, p {min(p_worse, p_better):.2g}"
    else:
        status, cause = AnalysisStatus.OPEN, "open, because no span names either version yet"
    reason = f"{cause}: {newer}; its predecessor {older}; {len(losses)} comparisons" + (
        f", {reviews}" if reviews else ""
    )
    return RolloutAnalysis(status, reason, newer, older, len(losses), p_worse, p_better, reviews)


def differences(first: Sequence[LiveOutcome], second: Sequence[LiveOutcome]) -> list[float]:
    """Differences in score (first minus second) of outcomes that became known at about the same time, oldest first.

    As soon as both versions have outcomes, their means are compared and both start again. Which version's outcome
    arrives next does not depend on its score, so the mean difference of equal versions is 0 however the traffic drifts.
    Labels that a judge stored together count in the order of their decisions.
    """
    arrivals = [(outcome, 0) for outcome in first] + [(outcome, 1) for outcome in second]
    gains: list[float] = []
    pending: tuple[list[float], list[float]] = ([], [])
    for outcome, side in sorted(arrivals, key=lambda arrival: (arrival[0].known_at, arrival[0].decided_at)):
        pending[side].append(outcome.score)
        if all(pending):
            gains.append(fmean(pending[0]) - fmean(pending[1]))
            pending = ([], [])
    return gains


def outcomes_to_prove(gain: float, alpha: float, *, score: float, per_canary: float) -> int:
    """Return about how many canary outcomes prove a gain, if the others have `per_canary` outcomes for each of them.

    The e-process grows by gain² / (2 variance) with each comparison when it stakes the best fraction. Its logarithm
    has to reach log(1/alpha).
    """
    variance = score * (1 - score) * (1 + 1 / per_canary)
    return math.ceil(math.log(1 / alpha) * 2 * variance / gain**2)


def _p_value(evidence: Sequence[Sequence[float]]) -> float:
    """Return the inverse of the mean e-value. Each kind of evidence gives one.

    The mean of e-values is an e-value however they depend on each other (Vovk & Wang, Ann Statist 2021). So it does not
    matter that the same request may have an outcome and a review.
    """
    logs = [log_e_value(gains) for gains in evidence]
    largest = max(logs)
    return min(1.0, math.exp(-largest) / fmean(math.exp(log - largest) for log in logs))
