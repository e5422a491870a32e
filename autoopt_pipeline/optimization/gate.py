"""Whether a candidate is proven better than the incumbent. Pure: plain values in, a verdict with its reason out."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import comb

MIN_HOLDOUT = 100
"""Fewest independently labelled holdout examples that may decide by themselves. With fewer, only differences
of 15 points and more can be told from luck (mid-p McNemar at 80 % power)."""

MIN_GAIN = 0.02
"""Least gain in score that is worth a new version."""

MIN_CLASS_CASES = 10
MAX_CLASS_LOSS = 0.10
CLASS_ALPHA = 0.05
"""A class with enough cases must not lose more than this share of them, unless that may be luck, or the class's
F1 rose all the same: an incumbent that answers one class to everything has all of its cases right."""

MAX_GUARD_LOSS = 0.10
GUARD_ALPHA = 0.05
"""The same for the traces that only guard, beyond the share that the incumbent gets wrong. Their labels are answers
of the application, most often the incumbent's own: it agrees with all of them, right or wrong."""


class Verdict(StrEnum):
    PROMOTED = "promoted"
    REJECTED = "rejected"
    AWAITING_APPROVAL = "awaiting_approval"
    NOT_ENOUGH_DATA = "not_enough_data"
    NO_INDEPENDENT_LABELS = "no_independent_labels"
    STALE = "stale"


@dataclass(frozen=True)
class Case:
    """One holdout example answered by both programs. Answers are None where a program gave no valid one."""

    label: str
    incumbent: str | None
    candidate: str | None

    @property
    def fixed(self) -> bool:
        return self.candidate == self.label != self.incumbent

    @property
    def broken(self) -> bool:
        return self.incumbent == self.label != self.candidate


@dataclass(frozen=True)
class Comparison:
    """What the holdout says. Scores are shares of right answers, 0 to 1."""

    cases: int
    incumbent_score: float
    candidate_score: float
    fixed: int
    broken: int
    p_value: float

    @property
    def gain(self) -> float:
        return self.candidate_score - self.incumbent_score


@dataclass(frozen=True)
class GateDecision:
    """The verdict of the statistics (`promoted` or `rejected`) with its reason in words."""

    verdict: Verdict
    reason: str
    alpha: float
    comparison: Comparison


def mid_p(fixed: int, broken: int) -> float:
    """One-sided mid-p value of McNemar's test: how likely so many fixed, were both programs equally good.

    Under that hypothesis each discordant case is fixed or broken with equal chance. Half of the probability
    of the observed count is taken, which makes the test nearly exact where the exact one is too strict
    (Fagerland, Lydersen & Laake, BMC Med Res Methodol 2013).
    """
    n = fixed + broken
    if n == 0:
        return 0.5
    at_least = sum(comb(n, k) for k in range(fixed, n + 1))
    return (2 * at_least - comb(n, fixed)) / 2 ** (n + 1)


def compare(cases: Sequence[Case]) -> Comparison:
    """Score both programs on the same cases. Raises ValueError without any."""
    if not cases:
        raise ValueError("nothing to compare")
    fixed = sum(case.fixed for case in cases)
    broken = sum(case.broken for case in cases)
    return Comparison(
        cases=len(cases),
        incumbent_score=sum(case.incumbent == case.label for case in cases) / len(cases),
        candidate_score=sum(case.candidate == case.label for case in cases) / len(cases),
        fixed=fixed,
        broken=broken,
        p_value=mid_p(fixed, broken),
    )


def judge(cases: Sequence[Case], guard: Sequence[Case], *, alpha: float) -> GateDecision:
    """Compare candidate and incumbent. `guard` may show a loss and never a gain.

    Promote only when the gain is significant at `alpha` and large enough, no class got clearly worse, and
    the guarding traces show no clear loss.
    """
    result = compare(cases)
    numbers = (
        f"{result.fixed} fixed, {result.broken} broken of {result.cases} holdout traces "
        f"({_percent(result.incumbent_score)} -> {_percent(result.candidate_score)}, "
        f"p {result.p_value:.2g}, allowed {alpha:.2g})"
    )

    def decision(verdict: Verdict, reason: str) -> GateDecision:
        return GateDecision(verdict, f"{reason}: {numbers}", alpha, result)

    if result.p_value > alpha:
        return decision(Verdict.REJECTED, "not proven better")
    if result.gain < MIN_GAIN:
        return decision(Verdict.REJECTED, f"better by less than {_percent(MIN_GAIN)}")
    for label in sorted({case.label for case in cases}):
        own = compare([case for case in cases if case.label == label])
        if own.cases >= MIN_CLASS_CASES and _clear_loss(own, MAX_CLASS_LOSS, CLASS_ALPHA) and _f1_fell(cases, label):
            return decision(
                Verdict.REJECTED,
                f"clearly worse on {label!r} ({_percent(own.incumbent_score)} -> {_percent(own.candidate_score)})",
            )
    allowed = MAX_GUARD_LOSS + 1 - result.incumbent_score
    if guard and _clear_loss(watched := compare(guard), allowed, GUARD_ALPHA):
        return decision(
            Verdict.REJECTED,
            f"clearly worse on {watched.cases} unreviewed traces "
            f"({_percent(watched.incumbent_score)} -> {_percent(watched.candidate_score)})",
        )
    return decision(Verdict.PROMOTED, "proven better")


def _clear_loss(comparison: Comparison, most: float, alpha: float) -> bool:
    return -comparison.gain > most and mid_p(comparison.broken, comparison.fixed) <= alpha


def _f1_fell(cases: Sequence[Case], label: str) -> bool:
    def f1(answers: Sequence[str | None]) -> float:
        right = sum(answer == case.label == label for answer, case in zip(answers, cases, strict=True))
        given = sum(answer == label for answer in answers)
        wanted = sum(case.label == label for case in cases)
        return 2 * right / (given + wanted)

    return f1([case.candidate for case in cases]) < f1([case.incumbent for case in cases])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
