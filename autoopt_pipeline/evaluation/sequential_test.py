"""The sequential test of a candidate: exact, on drawn traces, and valid after every single review. Pure.

Both programs answer the same traces, drawn in batches whatever became of them. Where both answer alike, the difference
in score is 0 whatever is right, so only the disagreements need a review. They are reviewed in random order.

If the candidate is no better, each difference could just as well have the other sign (Fisher 1935, Pitman 1937). So
the sum of the differences is a fair random walk, whose distribution is known exactly. By each look the test may have
spent a part of alpha: alpha times the square root of the part of the planned traces that is done (alpha spending: Lan &
DeMets, Biometrika 1983). The plan is `BATCHES` times the first batch, so it does not depend on any answer. The square
root lets a large gain end the test after some fifteen reviews, and leaves enough
for a small one (bench/README.md).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from autoopt_pipeline.evaluation.cases import Judged, PairedCase
from autoopt_pipeline.evaluation.statistics import BETS, GRID

# Most traces that are drawn for one batch.
MAX_BATCH = 300

# Batches as large as the first one that a test plans. A candidate that is unproven after so many traces is given up.
BATCHES = 3

# Where the judge's word does not favour the incumbent, people are asked with this chance. A smaller one would let a bet
# risk less on each case, and so ask for more traces (bench/README.md).
ASKED = 0.5

# Most evidence against the candidate that one case can give: the judge favours it, and a person the incumbent.
MOST_LOST = 2 / ASKED - 1

# Reviews stop when a candidate that wins this share of the differences would do so badly in at most 2 % of cases.
HOPED_WINS = 0.65
HOPELESS = 0.02

# Fewest differences before reviews stop for that reason.
MIN_DECIDED = 15


@dataclass(frozen=True)
class Batch:
    """Drawn traces that both programs have answered.

    `reviewed` are the disagreements with a known right answer, or a judge's where people are not asked: the first ones
    of all `disagreements` in the order of review. The first `known` of them had a label before the comparison. `agreed`
    are the traces with two like answers and a known right one, `presumed` those without: their class is taken to be the
    answer. `rest` is a judge's word on the disagreements that are left, if any. `alike_first` counts the like answers
    before the first disagreement that is left, in the order of review; None means all.
    """

    reviewed: tuple[PairedCase, ...]
    disagreements: int
    known: int
    agreed: tuple[PairedCase, ...]
    presumed: tuple[PairedCase, ...] = ()
    rest: tuple[Judged, ...] = ()
    alike_first: int | None = None

    @property
    def drawn(self) -> int:
        return self.disagreements + self.alike

    @property
    def alike(self) -> int:
        return len(self.agreed) + len(self.presumed)

    @property
    def left(self) -> int:
        """Disagreements after the reviewed ones."""
        return self.disagreements - len(self.reviewed)

    @property
    def to_review(self) -> int:
        """Disagreements that people are still asked about."""
        return sum(judged.asked for judged in self.rest) if self.rest else self.left

    @property
    def spares_reviews(self) -> bool:
        """Whether a judge's word spares people some reviews, of those to come as well: known before the first one."""
        words = (*(case.judged for case in self.reviewed), *self.rest)
        return any(judged.share < 1 for judged in words if judged)

    @property
    def cases(self) -> tuple[PairedCase, ...]:
        return (*self.reviewed, *self.agreed, *self.presumed)

    @property
    def gain(self) -> float:
        """Sum of the differences, extrapolated to the disagreements that are not reviewed yet."""
        if not self.reviewed:
            return 0.0
        return sum(case.evidence for case in self.reviewed) * self.disagreements / len(self.reviewed)


def known_batch(cases: Iterable[PairedCase]) -> Batch:
    """Return the batch of traces whose right answers were all known before the comparison."""
    cases = tuple(cases)
    different = tuple(case for case in cases if case.difference)
    return Batch(different, len(different), len(different), tuple(case for case in cases if not case.difference))


@dataclass(frozen=True)
class TestResult:
    """Whether the candidate is proven, with the p value of the last look and the alpha that it was allowed.

    The p value is the chance of such a sum, or of an earlier proof, if the candidate is no better.
    """

    proven: bool
    p_value: float
    allowed: float


def planned_traces(batches: Sequence[Batch]) -> int:
    """Return after how many traces the test ends."""
    return BATCHES * batches[0].drawn


def run_test(batches: Sequence[Batch], alpha: float) -> TestResult:
    """Test the candidate at every look so far: after the labels that were known, and after each review.

    Where a judge spares people some reviews, the test is `run_judged_test`.
    """
    if any(batch.spares_reviews for batch in batches):
        return run_judged_test(batches, alpha)
    unit = math.gcd(*(_step(case) for batch in batches for case in batch.reviewed)) or 1
    chances, lowest = np.ones(1), 0  # of the walk's positions from `lowest` on, without walks that ended in a proof
    planned, spent, position, drawn = planned_traces(batches), 0.0, 0, 0
    result = TestResult(False, 1.0, 0.0)
    for batch in batches:
        for number, case in enumerate(batch.reviewed, 1):
            if step := _step(case) // unit:
                position += step
                size = abs(step)
                longer = np.zeros(len(chances) + 2 * size)
                longer[: len(chances)] += chances / 2
                longer[2 * size :] += chances / 2
                chances, lowest = longer, lowest - size
            if number < batch.known:
                continue
            done = (drawn + batch.drawn * number / batch.disagreements) / planned
            allowed = alpha * math.sqrt(min(done, 1.0))
            tails = np.cumsum(chances[::-1])[::-1]
            p_value = spent + float(tails[position - lowest])
            result = TestResult(p_value <= allowed, p_value, allowed)
            if result.proven:
                return result
            # The rarest high positions would have been a proof here.
            proofs = int(np.searchsorted(-tails, spent - allowed, side="left"))
            spent += float(chances[proofs:].sum())
            chances[proofs:] = 0.0
        drawn += batch.drawn
    return result


def run_judged_test(batches: Sequence[Batch], alpha: float) -> TestResult:
    """Test the candidate by bets on the evidence of each case. Valid after every review, whatever the judge says.

    If the candidate is no better, no gambler's wealth grows on average, so the chance that their mean wealth ever
    reaches 1/alpha is at most alpha (Ville 1939; betting as in Waudby-Smith & Ramdas, JRSS B 2024). Nothing is planned
    or spent: all of alpha is allowed at once.
    """
    evidence = np.array([case.evidence for batch in batches for case in batch.reviewed])
    wealth = np.cumsum(np.log1p(np.outer(evidence / MOST_LOST, BETS)), axis=0)
    largest = float(np.logaddexp.reduce(wealth, axis=1).max(initial=-math.inf)) - math.log(len(BETS))
    p_value = min(1.0, math.exp(-largest))
    return TestResult(p_value <= alpha, p_value, alpha)


def is_hopeless(batches: Sequence[Batch]) -> bool:
    """Check whether the candidate wins so few of the differences that further reviews would be wasted.

    A judge that may spare reviews is believed here, because this can only stop a test.
    """
    reviewed = [(case.difference, case.evidence) for batch in batches for case in batch.reviewed]
    judged = [(judged.difference, judged.difference) for judged in batches[-1].rest if judged.share < 1]
    cases = [(abs(difference), evidence) for difference, evidence in [*reviewed, *judged] if difference]
    if len(cases) < MIN_DECIDED:
        return False
    lead = 2 * HOPED_WINS - 1
    deviation = math.sqrt((1 - lead**2) * sum(evidence**2 for _, evidence in cases))
    # Nothing is proven by this, so the normal distribution is exact enough. The smallest size corrects for its steps.
    won, smallest = sum(evidence for _, evidence in cases), min(size for size, _ in cases)
    return NormalDist(lead * sum(size for size, _ in cases), deviation).cdf(won + smallest) < HOPELESS


def _step(case: PairedCase) -> int:
    return round(GRID * case.difference)
