"""The test that a cheaper candidate is not worse than the incumbent by more than a margin. Pure.

It bets on every drawn trace, in the order of review: on the difference in score plus the margin. If the candidate loses
more than the margin on average, no gambler's wealth grows, so the chance that it ever reaches 1/alpha is at most alpha
(see `log_e_value`). A trace on which both answer alike counts as a gain of the margin. The first disagreement that
nobody has reviewed yet ends the sequence.

A candidate that is better is not worse, either. So both tests may use all of alpha, as long as "better" needs both
(closed testing: Marcus, Peritz & Gabriel, Biometrika 1976).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pstdev

from autoopt_pipeline.evaluation.sequential_test import MIN_DECIDED, MOST_LOST, Batch
from autoopt_pipeline.evaluation.statistics import BETS, log_e_value

# Most traces for this test. A candidate that is as good as the incumbent, and differs on 2 % of the traces, is proven
# within them two times in three at a margin of one point (bench/README.md).
MOST_TRACES = 3000

# The hope that keeps a test going is this many standard errors above what is seen.
HOPE = 1.0


@dataclass(frozen=True)
class NotWorse:
    """The state of the test. `needed` is the number of traces that a hopeful estimate asks for, infinite if none do.

    The p value is the chance of such evidence if the candidate loses the margin on average.
    """

    margin: float
    proven: bool
    p_value: float
    drawn: int
    needed: float

    @property
    def within_reach(self) -> bool:
        """Whether more reviews or traces may prove it within `MOST_TRACES`."""
        return self.drawn < MOST_TRACES and self.needed <= MOST_TRACES

    @property
    def needs(self) -> str:
        """The traces that a proof needs, in words."""
        if self.needed > 100 * MOST_TRACES:
            return f"more than {100 * MOST_TRACES:,} traces"
        return f"some {float(f'{self.needed:.2g}'):,.0f} traces"


def run_not_worse_test(batches: Sequence[Batch], margin: float, alpha: float) -> NotWorse:
    """Test on all batches so far. Valid at any time. `margin` is a share of the score, above 0."""
    most_lost = MOST_LOST if any(batch.spares_reviews for batch in batches) else 1.0
    gains = [case.evidence for batch in batches for case in batch.reviewed]
    alike = sum(batch.alike if batch.alike_first is None else batch.alike_first for batch in batches)
    drawn = sum(batch.drawn for batch in batches)
    log_evidence = log_e_value([(gain + margin) / most_lost for gain in [*gains, *[0.0] * alike]])
    p_value = math.exp(-max(0.0, log_evidence))
    return NotWorse(margin, p_value <= alpha, p_value, drawn, traces_needed(batches, margin, alpha))


def traces_needed(batches: Sequence[Batch], margin: float, alpha: float) -> float:
    """Estimate the number of traces for a proof, if the candidate gains as much as may be hoped.

    With few reviews that is the margin, and later `HOPE` standard errors more than is seen.
    """
    drawn = sum(batch.drawn for batch in batches)
    disagreements = sum(batch.disagreements for batch in batches) / drawn
    seen = [case.difference for batch in batches for case in batch.reviewed]
    hoped = margin
    if len(seen) >= MIN_DECIDED:
        mean = math.fsum(seen) / len(seen)
        hoped = disagreements * (mean + HOPE * pstdev(seen) / math.sqrt(len(seen)))
    return traces_for(disagreements, hoped, margin, alpha)


def traces_for(disagreements: float, gain: float, margin: float, alpha: float) -> float:
    """Return about how many traces prove a candidate not worse that disagrees on, and gains, such shares of them."""
    gain = max(-disagreements, min(gain, disagreements))
    won, lost = (disagreements + gain) / 2, (disagreements - gain) / 2
    growth = max(
        won * math.log1p(bet * (margin + 1))
        + lost * math.log1p(bet * (margin - 1))
        + (1 - disagreements) * math.log1p(bet * margin)
        for bet in BETS
    )
    # The gamblers who bet too little or too much cost about half of the logarithm of their number.
    return (math.log(1 / alpha) + math.log(len(BETS)) / 2) / growth if growth > 0 else math.inf
