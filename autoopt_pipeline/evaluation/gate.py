"""The gate: decides whether a candidate is proven better than the incumbent. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, stdev

from autoopt_pipeline.evaluation.calibration import brier, squared_errors, unexplained
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.statistics import Power, power, sign_flip_p
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.text import percent

# Fewest independently labelled holdout examples that can decide without further traces. With fewer, only differences of
# 15 points and more can be distinguished from luck (mid-p McNemar at 80 % power).
MIN_HOLDOUT = 100

# Smallest gain in score that is worth a new version.
MIN_GAIN = 0.02

# A decision reports how many cases this gain needs. It is small, but large enough for users to notice.
GOAL = 0.05

# A class with enough cases must not lose more score than this, unless that may be luck or the class's F1 rose. F1
# counts because an incumbent that gives the same answer to everything has all cases of that class right.
MIN_CLASS_CASES = 10
MAX_CLASS_LOSS = 0.10

# Largest loss of score on the guard traces, beyond the fraction that the incumbent gets wrong. Their labels are answers
# of the application, most of them the incumbent's own, so the incumbent agrees with all of them, right or wrong.
MAX_GUARD_LOSS = 0.10

# The squared error of the confidence must not grow by more than this, unless that may be luck.
MAX_CALIBRATION_LOSS = 0.05

# A loss with a p value up to this is not luck. A loss can only stop a promotion, so it is not charged to the ledger.
LOSS_ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """The scores of both programs on the same cases. Scores are means, 0 to 1.

    `p_value` is the chance of a result this good if the candidate is no better. It comes from the paired test on a
    holdout, and from the e-process (1/E) in a sequential test.
    """

    cases: int
    incumbent_score: float
    candidate_score: float
    fixed: int
    broken: int
    p_value: float

    @property
    def gain(self) -> float:
        return self.candidate_score - self.incumbent_score

    def __str__(self) -> str:
        return (
            f"{self.fixed} fixed, {self.broken} broken of {self.cases} holdout traces "
            f"({percent(self.incumbent_score)} % -> {percent(self.candidate_score)} %)"
        )


@dataclass(frozen=True)
class Calibration:
    """Brier scores of both programs on the same cases. 0 is perfect, and 0.25 is no better than tossing a coin."""

    incumbent: float
    candidate: float


@dataclass(frozen=True)
class GateDecision:
    """The gate's verdict (`promoted`, `rejected` or `inconclusive`) with its reason as a sentence.

    `power` is the gain that the holdout can show at `alpha`. It is None in a sequential test, whose number of cases is
    not fixed.
    """

    verdict: Verdict
    reason: str
    alpha: float
    comparison: Comparison
    calibration: Calibration
    power: Power | None


def compare(cases: Sequence[PairedCase], test: Callable[[Sequence[float]], float] = sign_flip_p) -> Comparison:
    """Score both programs on the same cases. `test` returns the p value. Raises ValueError without cases."""
    if not cases:
        raise ValueError("there are no cases to compare")
    return Comparison(
        cases=len(cases),
        incumbent_score=_score([case.incumbent for case in cases]),
        candidate_score=_score([case.candidate for case in cases]),
        fixed=sum(case.fixed for case in cases),
        broken=sum(case.broken for case in cases),
        p_value=test([case.difference for case in cases]),
    )


def calibration(cases: Sequence[PairedCase]) -> Calibration:
    """Return the Brier scores of both programs. Raises ZeroDivisionError without cases."""
    return Calibration(brier([case.incumbent for case in cases]), brier([case.candidate for case in cases]))


def judge(cases: Sequence[PairedCase], guard: Sequence[PairedCase], *, alpha: float) -> GateDecision:
    """Compare candidate and incumbent on a holdout. The `guard` cases can only show a loss.

    The candidate is promoted if its gain is large enough and significant at `alpha`, and nothing is clearly worse. If
    only significance is missing, it is `inconclusive`: more cases can decide.
    """
    result = compare(cases)
    holdout_power = power([case.difference for case in cases], gain=GOAL, alpha=alpha)
    if result.gain < MIN_GAIN:
        verdict, cause = Verdict.REJECTED, f"not better by {percent(MIN_GAIN)} %"
    elif loss := clear_loss(cases) or _guard_loss(guard, result.incumbent_score):
        verdict, cause = Verdict.REJECTED, loss
    elif result.p_value > alpha:
        verdict, cause = Verdict.INCONCLUSIVE, f"may be better, not proven yet ({holdout_power})"
    else:
        verdict, cause = Verdict.PROMOTED, "proven better"
    return GateDecision(verdict, reason(cause, result, alpha), alpha, result, calibration(cases), holdout_power)


def clear_loss(cases: Sequence[PairedCase]) -> str | None:
    """Describe where the candidate is clearly worse, even if it is better overall. Return None if nowhere."""
    for label in sorted({case.label for case in cases}):
        class_cases = [case for case in cases if case.label == label]
        if len(class_cases) >= MIN_CLASS_CASES and _lost(class_cases, MAX_CLASS_LOSS) and _f1_fell(cases, label):
            return f"clearly worse on {label!r} ({_change(class_cases)})"
    if _calibration_worse(cases):
        scores = calibration(cases)
        return (
            "its confidence is clearly less reliable "
            f"(Brier score {scores.incumbent:.2f} -> {scores.candidate:.2f}, 0 is best)"
        )
    return None


def _calibration_worse(cases: Sequence[PairedCase]) -> bool:
    """Check whether both the squared error and its part unexplained by the spread of scores have clearly grown.

    Each alone would blame the confidence for a different fraction of right answers: about a half is hard to predict,
    and nearly all makes a good confidence seem too low.
    """
    before, after = [case.incumbent for case in cases], [case.candidate for case in cases]
    return all(
        _clearly_above([new - old for old, new in zip(measure(before), measure(after), strict=True)])
        for measure in (squared_errors, unexplained)
    )


def _clearly_above(grown: Sequence[float]) -> bool:
    """Check whether the mean is above the limit, and above 0 by more than chance explains.

    Squared errors have too many different values for the exact test to be fast, and a hundred of them are enough for
    the normal distribution.
    """
    mean = sum(grown) / len(grown)
    error = stdev(grown) / math.sqrt(len(grown)) if len(grown) > 1 else 0.0
    return mean > MAX_CALIBRATION_LOSS and mean > NormalDist().inv_cdf(1 - LOSS_ALPHA) * error


def reason(cause: str, result: Comparison, alpha: float) -> str:
    """Return a verdict's reason: the cause with its numbers."""
    return f"{cause}: {result}, p {result.p_value:.2g}, alpha {alpha:.2g}"


def _guard_loss(guard: Sequence[PairedCase], incumbent_score: float) -> str | None:
    if guard and _lost(guard, MAX_GUARD_LOSS + 1 - incumbent_score):
        return f"clearly worse on {len(guard)} unreviewed traces ({_change(guard)})"
    return None


def _lost(cases: Sequence[PairedCase], most: float) -> bool:
    losses = [-case.difference for case in cases]
    return sum(losses) / len(losses) > most and sign_flip_p(losses) <= LOSS_ALPHA


def _f1_fell(cases: Sequence[PairedCase], label: str) -> bool:
    def f1(answers: Sequence[ScoredAnswer]) -> float:
        right = sum(answer.label == case.label == label for answer, case in zip(answers, cases, strict=True))
        answered = sum(answer.label == label for answer in answers)
        expected = sum(case.label == label for case in cases)
        return 2 * right / (answered + expected)

    return f1([case.candidate for case in cases]) < f1([case.incumbent for case in cases])


def _score(answers: Sequence[ScoredAnswer]) -> float:
    return sum(answer.score for answer in answers) / len(answers)


def _change(cases: Sequence[PairedCase]) -> str:
    before, after = _score([case.incumbent for case in cases]), _score([case.candidate for case in cases])
    return f"{percent(before)} % -> {percent(after)} %"
