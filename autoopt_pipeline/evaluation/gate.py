"""The gate: decides whether a candidate is proven better than the incumbent, or as good where it is cheaper. Pure."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, stdev

from autoopt_pipeline.evaluation.calibration import brier, squared_errors, unexplained
from autoopt_pipeline.evaluation.cases import Judged, PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.not_worse import MOST_TRACES, NotWorse, run_not_worse_test
from autoopt_pipeline.evaluation.sequential_test import Batch, TestResult, is_hopeless, planned_traces, run_test
from autoopt_pipeline.evaluation.statistics import Power, power, sign_flip_p
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.text import percent

# Fewest held-out traces for a test. With fewer, only differences of 15 points and more can be distinguished from luck.
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
    """The scores of both programs on the drawn traces, 0 to 1.

    `cases` counts the drawn traces, `fixed` and `broken` those of them on which the candidate is better and worse,
    `reviews` the known right answers, and `by_judge` the disagreements on which only a judge was asked. A score is None
    while no right answer of two like answers is known.
    """

    cases: int
    incumbent_score: float | None
    candidate_score: float | None
    gain: float
    fixed: int
    broken: int
    reviews: int
    p_value: float
    by_judge: int = 0

    def __str__(self) -> str:
        scores = (
            f"{percent(self.incumbent_score)} % -> {percent(self.candidate_score)} %"
            if self.incumbent_score is not None and self.candidate_score is not None
            else f"{100 * self.gain:+.1f} points"
        )
        by_judge = f", {self.by_judge} by the judge alone" if self.by_judge else ""
        return f"{self.fixed} fixed, {self.broken} broken of {self.cases} holdout traces ({scores}){by_judge}"


@dataclass(frozen=True)
class Calibration:
    """Brier scores of both programs on the same cases. 0 is perfect, and 0.25 is no better than tossing a coin."""

    incumbent: float
    candidate: float


@dataclass(frozen=True)
class GateDecision:
    """The gate's verdict with its reason as a sentence.

    It is `promoted`, `rejected`, `awaiting_reviews` (of disagreements), or `inconclusive` (more traces can decide).
    `power` is the gain that the drawn traces can show at `alpha`; None while reviews are missing. `calibration` is None
    unless the right answer of every drawn trace is known. `spent` is the part of alpha that the test may have used.
    `not_worse` is None unless the candidate is cheaper.
    """

    verdict: Verdict
    reason: str
    alpha: float
    comparison: Comparison
    calibration: Calibration | None
    power: Power | None
    spent: float
    not_worse: NotWorse | None = None

    @property
    def numbers(self) -> dict[str, float | int]:
        """The numbers behind the verdict by name, as manifests and reports have them; unknown ones are left out."""
        comparison, calibration = self.comparison, self.calibration
        numbers: dict[str, float | int] = {
            "alpha": self.alpha,
            "p_value": comparison.p_value,
            "cases": comparison.cases,
            "gain": comparison.gain,
            "fixed": comparison.fixed,
            "broken": comparison.broken,
            "reviews": comparison.reviews,
        }
        if comparison.by_judge:
            numbers["by_judge"] = comparison.by_judge
        if self.not_worse:
            numbers |= {"max_loss": self.not_worse.margin, "not_worse_p_value": self.not_worse.p_value}
        if calibration:
            numbers |= {"incumbent_brier": calibration.incumbent, "candidate_brier": calibration.candidate}
        return numbers


def compare(batches: Sequence[Batch], p_value: float) -> Comparison:
    """Score both programs on the same traces. Raises ValueError without traces."""
    drawn = sum(batch.drawn for batch in batches)
    if not drawn:
        raise ValueError("there are no cases to compare")
    reviewed = [case for batch in batches for case in batch.reviewed]
    agreed = [case for batch in batches for case in batch.agreed]
    return Comparison(
        cases=drawn,
        incumbent_score=_mean_score(
            batches, [case.incumbent for case in reviewed], [case.incumbent for case in agreed]
        ),
        candidate_score=_mean_score(
            batches, [case.candidate for case in reviewed], [case.candidate for case in agreed]
        ),
        gain=sum(batch.gain for batch in batches) / drawn,
        fixed=sum(case.fixed for case in reviewed),
        broken=sum(case.broken for case in reviewed),
        reviews=sum(case.by_person for case in reviewed) + len(agreed),
        p_value=p_value,
        by_judge=sum(not case.by_person for case in reviewed),
    )


def _mean_score(
    batches: Sequence[Batch], reviewed: Sequence[ScoredAnswer], agreed: Sequence[ScoredAnswer]
) -> float | None:
    """Return the mean score on all drawn traces: of disagreements and of like answers, each as far as it is known."""
    disagreements = sum(batch.disagreements for batch in batches)
    alike = sum(batch.drawn for batch in batches) - disagreements
    if (alike and not agreed) or (disagreements and not reviewed):
        return None
    parts = [(disagreements, reviewed), (alike, agreed)]
    return sum(count * fmean(answer.score for answer in part) for count, part in parts if part) / (
        disagreements + alike
    )


def decide(
    batches: Sequence[Batch], guard: Sequence[PairedCase] = (), *, alpha: float, max_loss: float | None = None
) -> GateDecision:
    """Compare candidate and incumbent on drawn traces, all batches of a test so far. `guard` can only show a loss.

    The candidate is promoted if its gain is large enough and significant, and nothing is clearly worse. If only
    significance is missing, more reviews or more traces can decide. With `max_loss`, for a cheaper candidate, it is
    promoted as well if it is proven not worse by more than that share of the score. Raises ValueError without traces.
    """
    test = run_test(batches, alpha)
    not_worse = run_not_worse_test(batches, max_loss, alpha) if max_loss else None
    result = compare(batches, test.p_value)
    cases = [case for batch in batches for case in batch.cases]
    left = batches[-1].left
    verdict, cause = _verdict(batches, test, not_worse, result, guard, cases)
    p_value = not_worse.p_value if not_worse and not test.proven else test.p_value
    return GateDecision(
        verdict,
        f"{cause}: {result}, p {p_value:.2g}, alpha {alpha:.2g}",
        alpha,
        result,
        calibration(cases) if _all_known(batches) else None,
        None if left else _power(cases, alpha),
        alpha if not_worse else test.allowed,
        not_worse,
    )


def _verdict(
    batches: Sequence[Batch],
    test: TestResult,
    not_worse: NotWorse | None,
    result: Comparison,
    guard: Sequence[PairedCase],
    cases: Sequence[PairedCase],
) -> tuple[Verdict, str]:
    left = batches[-1].left
    enough = result.gain >= MIN_GAIN
    better = test.proven and enough

    def loss() -> str | None:
        return clear_loss(batches) or _guard_loss(guard, result.incumbent_score)

    if not_worse.proven if not_worse else better:
        if vetoed := loss():
            return Verdict.REJECTED, vetoed
        margin = percent(not_worse.margin) if not_worse else ""
        return Verdict.PROMOTED, "proven better" if better else f"proven not worse by more than {margin} points"
    if not_worse and not_worse.within_reach:
        if left:
            return Verdict.AWAITING_REVIEWS, _waiting(batches)
        if vetoed := loss():
            return Verdict.REJECTED, vetoed
        return (
            Verdict.INCONCLUSIVE,
            f"may be as good and is cheaper, not proven yet (needs {not_worse.needs}; it has {not_worse.drawn:,})",
        )
    hint = _beyond_reach(not_worse) if not_worse else ""
    if is_hopeless(batches):
        return Verdict.REJECTED, f"wins too few of the reviewed disagreements{hint}"
    if _out_of_reach(batches):
        return Verdict.REJECTED, f"not better by {percent(MIN_GAIN)} %{hint}"
    if left:
        return Verdict.AWAITING_REVIEWS, _waiting(batches)
    if not enough:
        return Verdict.REJECTED, f"not better by {percent(MIN_GAIN)} %{hint}"
    if vetoed := loss():
        return Verdict.REJECTED, vetoed
    if result.cases >= planned_traces(batches):
        return Verdict.REJECTED, f"given up because it is still not proven after {result.cases} traces{hint}"
    return Verdict.INCONCLUSIVE, f"may be better, not proven yet ({_power(cases, test.allowed)})"


def _waiting(batches: Sequence[Batch]) -> str:
    return f"{batches[-1].to_review} of {batches[-1].disagreements} disagreements wait for a review"


def _beyond_reach(not_worse: NotWorse) -> str:
    """Say why a cheaper candidate is not tested further."""
    cause = (
        f"{not_worse.drawn:,} traces did not prove it"
        if not_worse.drawn >= MOST_TRACES
        else f"that needs {not_worse.needs}"
    )
    return f", and not shown to be as good within {percent(not_worse.margin)} points (objective.max_loss): {cause}"


def reviews_needed(batches: Sequence[Batch], alpha: float, max_loss: float | None = None) -> int:
    """Return after how many more reviews a decision is possible at the soonest: if all of them favour one program."""
    last = batches[-1]

    def imagined(judged: Judged | None, review: float) -> PairedCase:
        difference = review if judged is None or judged.asked else judged.difference
        scores = max(-difference, 0), max(difference, 0)
        return PairedCase("", *(ScoredAnswer(score, None, None) for score in scores), judged)

    def decides(count: int, review: float) -> bool:
        cases = [imagined(judged, review) for judged in rest[:count]]
        reviewed = (*last.reviewed, *cases)
        # The like answers lie between the disagreements in a random order.
        alike_first = last.alike * len(reviewed) // max(1, last.disagreements)
        after = [*batches[:-1], replace(last, reviewed=reviewed, rest=last.rest[count:], alike_first=alike_first)]
        return decide(after, alpha=alpha, max_loss=max_loss).verdict is not Verdict.AWAITING_REVIEWS

    rest = last.rest or (None,) * last.left
    soonest = min(bisect_left(range(last.left), True, key=lambda n: decides(n, review)) for review in (1.0, -1.0))
    return max(1, sum(judged is None or judged.asked for judged in rest[:soonest]))


def _out_of_reach(batches: Sequence[Batch]) -> bool:
    """Check whether the gain stays too small even if the candidate wins all disagreements that are left."""
    won = sum(case.evidence for batch in batches for case in batch.reviewed) + batches[-1].left
    return won < MIN_GAIN * sum(batch.drawn for batch in batches)


def _all_known(batches: Sequence[Batch]) -> bool:
    return not any(batch.presumed or batch.left for batch in batches)


def _power(cases: Sequence[PairedCase], alpha: float) -> Power:
    return power([case.difference for case in cases], gain=GOAL, alpha=alpha)


def calibration(cases: Sequence[PairedCase]) -> Calibration:
    """Return the Brier scores of both programs. Raises ZeroDivisionError without cases."""
    return Calibration(brier([case.incumbent for case in cases]), brier([case.candidate for case in cases]))


def clear_loss(batches: Sequence[Batch]) -> str | None:
    """Describe where the candidate is clearly worse, even if it is better overall. Return None if nowhere.

    Like answers add to a class's size, and nothing to its loss. Where the right answer is not known, the class is taken
    to be the answer that both gave. The confidence is only judged where every right answer is known.
    """
    cases = [case for batch in batches for case in batch.cases]
    for label in sorted({case.label for case in cases}):
        class_cases = [case for case in cases if case.label == label]
        if len(class_cases) >= MIN_CLASS_CASES and _lost(class_cases, MAX_CLASS_LOSS) and _f1_fell(cases, label):
            return f"clearly worse on {label!r} ({_change(class_cases)})"
    if _all_known(batches) and _calibration_worse(cases):
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


def _guard_loss(guard: Sequence[PairedCase], incumbent_score: float | None) -> str | None:
    if guard and incumbent_score is not None and _lost(guard, MAX_GUARD_LOSS + 1 - incumbent_score):
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
