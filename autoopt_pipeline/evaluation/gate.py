"""Whether a candidate is proven better than the incumbent. Pure: plain values in, a verdict with its reason out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, stdev

from autoopt_pipeline.evaluation.calibration import brier, squared_errors, unexplained
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.statistics import Power, power, sign_flip_p
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.text import percent

# Fewest independently labelled holdout examples that may decide by themselves. With fewer, only differences of 15
# points and more can be told from luck (mid-p McNemar at 80 % power).
MIN_HOLDOUT = 100

# Least gain in score that is worth a new version.
MIN_GAIN = 0.02

# The gain for which a decision says how many cases it takes: small, but one that users notice.
GOAL = 0.05

MIN_CLASS_CASES = 10
# A class with enough cases must not lose more than this in score, unless that may be luck, or the class's F1 rose all
# the same: an incumbent that answers one class to everything has all of its cases right.
MAX_CLASS_LOSS = 0.10

# The same for the traces that only guard, beyond the share that the incumbent gets wrong. Their labels are answers of
# the application, most often the incumbent's own: it agrees with all of them, right or wrong.
MAX_GUARD_LOSS = 0.10

# The squared error of the confidence must not grow by more than this, unless that may be luck.
MAX_CALIBRATION_LOSS = 0.05

# A loss is clear, not luck, at this p. Vetoes can only stop a promotion, so they are charged to no ledger.
LOSS_ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """What the cases say. Scores are means, 0 to 1.

    `p_value` is how likely so good a result is for a candidate that is no better: of the paired test on a holdout,
    1/E of the e-process in a sequential test.
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
    """Brier scores on the same cases: 0 is a confidence that is always right, 0.25 is no better than a coin's."""

    incumbent: float
    candidate: float


@dataclass(frozen=True)
class GateDecision:
    """The verdict of the statistics (`promoted`, `rejected` or `inconclusive`) with its reason in words.

    `power` is what the holdout can show at `alpha`; None in a sequential test, which takes as many cases as it takes.
    """

    verdict: Verdict
    reason: str
    alpha: float
    comparison: Comparison
    calibration: Calibration
    power: Power | None


def compare(cases: Sequence[PairedCase], test: Callable[[Sequence[float]], float] = sign_flip_p) -> Comparison:
    """Score both programs on the same cases; `test` gives the p value. Raises ValueError without any."""
    if not cases:
        raise ValueError("nothing to compare")
    return Comparison(
        cases=len(cases),
        incumbent_score=_score([case.incumbent for case in cases]),
        candidate_score=_score([case.candidate for case in cases]),
        fixed=sum(case.fixed for case in cases),
        broken=sum(case.broken for case in cases),
        p_value=test([case.difference for case in cases]),
    )


def calibration(cases: Sequence[PairedCase]) -> Calibration:
    """The Brier scores of both programs. Raises ZeroDivisionError without cases."""
    return Calibration(brier([case.incumbent for case in cases]), brier([case.candidate for case in cases]))


def judge(cases: Sequence[PairedCase], guard: Sequence[PairedCase], *, alpha: float) -> GateDecision:
    """Compare candidate and incumbent on a holdout. `guard` may show a loss and never a gain.

    Promote only when the gain is large enough and significant at `alpha`, and nothing got clearly worse. A candidate
    that lacks nothing but significance is `inconclusive`: it may be better, and more cases can tell.
    """
    result = compare(cases)
    able = power([case.difference for case in cases], gain=GOAL, alpha=alpha)
    if result.gain < MIN_GAIN:
        verdict, why = Verdict.REJECTED, f"not better by {percent(MIN_GAIN)} %"
    elif loss := clear_loss(cases) or _guard_loss(guard, result.incumbent_score):
        verdict, why = Verdict.REJECTED, loss
    elif result.p_value > alpha:
        verdict, why = Verdict.INCONCLUSIVE, f"may be better, not proven yet ({able})"
    else:
        verdict, why = Verdict.PROMOTED, "proven better"
    return GateDecision(verdict, reason(why, result, alpha), alpha, result, calibration(cases), able)


def clear_loss(cases: Sequence[PairedCase]) -> str | None:
    """In words, where the candidate is clearly worse although it may be better on the whole; None if nowhere."""
    for label in sorted({case.label for case in cases}):
        own = [case for case in cases if case.label == label]
        if len(own) >= MIN_CLASS_CASES and _lost(own, MAX_CLASS_LOSS) and _f1_fell(cases, label):
            return f"clearly worse on {label!r} ({_change(own)})"
    if _less_believable(cases):
        scores = calibration(cases)
        return (
            "its confidence is clearly less believable "
            f"(Brier score {scores.incumbent:.2f} -> {scores.candidate:.2f}, 0 is best)"
        )
    return None


def _less_believable(cases: Sequence[PairedCase]) -> bool:
    """Both the squared error and what of it the scores' own spread does not explain have clearly grown.

    Either alone would blame the confidence for another share of right answers: one that is hard to foretell (half),
    or one that makes a confidence look modest (nearly all).
    """
    before, after = [case.incumbent for case in cases], [case.candidate for case in cases]
    return all(
        _clearly_above([new - old for old, new in zip(measure(before), measure(after), strict=True)])
        for measure in (squared_errors, unexplained)
    )


def _clearly_above(grown: Sequence[float]) -> bool:
    """Mean above the limit, and above 0 by more than chance explains. Squared errors take too many values for the exact
    test to be quick, and a hundred of them are enough for the normal law."""
    mean = sum(grown) / len(grown)
    error = stdev(grown) / math.sqrt(len(grown)) if len(grown) > 1 else 0.0
    return mean > MAX_CALIBRATION_LOSS and mean > NormalDist().inv_cdf(1 - LOSS_ALPHA) * error


def reason(reason: str, result: Comparison, alpha: float) -> str:
    """A verdict's reason with the numbers behind it."""
    return f"{reason}: {result}, p {result.p_value:.2g}, allowed {alpha:.2g}"


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
        given = sum(answer.label == label for answer in answers)
        wanted = sum(case.label == label for case in cases)
        return 2 * right / (given + wanted)

    return f1([case.candidate for case in cases]) < f1([case.incumbent for case in cases])


def _score(answers: Sequence[ScoredAnswer]) -> float:
    return sum(answer.score for answer in answers) / len(answers)


def _change(cases: Sequence[PairedCase]) -> str:
    before, after = _score([case.incumbent for case in cases]), _score([case.candidate for case in cases])
    return f"{percent(before)} % -> {percent(after)} %"
