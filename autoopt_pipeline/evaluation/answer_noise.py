"""Answer noise: whether a program repeats its answers, and how many more traces the gate needs if it does not. Pure.

Noise affects both programs that the gate compares, so it favours neither. It adds random differences that hide real
ones, so the gate needs more held-out traces to prove a gain.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from autoopt_pipeline.evaluation.cases import ScoredAnswer
from autoopt_pipeline.evaluation.gate import GOAL
from autoopt_pipeline.evaluation.statistics import cases_needed, spread
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.modules.spec import Example
from autoopt_pipeline.text import percent

if TYPE_CHECKING:
    from autoopt_pipeline.evaluation.runner import Answer

# Fractions of all traces that the model candidate of the cost estimate fixes and breaks, so that it gains `GOAL`.
FIXED, BROKEN = 0.10, 0.05

CONFIDENCE = 0.95

# Larger numbers of held-out traces are reported as "over 100,000", because nobody will ever have so many.
COUNTLESS = 100_000


@dataclass(frozen=True)
class Repetition:
    """The result of asking one program the same examples twice.

    `differing` counts the examples with two different answers, `rescored` those with two different scores, and
    `unreadable` those with at least one invalid answer. `spread` is the mean squared difference of the scores.
    """

    asked: int
    differing: int
    rescored: int
    unreadable: int
    spread: float


@dataclass(frozen=True)
class Cost:
    """The effect of noise on testing at `alpha` a candidate that fixes `FIXED` and breaks `BROKEN` of all traces.

    `noise` is the fraction of observed differences that noise causes, and `gain` the part of the candidate's gain
    (`GOAL`) that remains visible. `needed` is the number of held-out traces that prove the candidate, at most
    `COUNTLESS`, and `needed_without_noise` that number for a model that repeats its answers.
    """

    alpha: float
    noise: float
    gain: float
    needed: int
    needed_without_noise: int


def newest(examples: Sequence[Example], shown: Collection[str], most: int) -> list[Example]:
    """Return the newest examples, each query once, except those that the program shows the model as demos."""
    in_demos = {normalize_query(query) for query in shown}
    by_query: dict[str, Example] = {}
    for example in sorted(examples, key=lambda example: (example.time, example.span_id), reverse=True):
        by_query.setdefault(normalize_query(example.query), example)
    return [example for query, example in by_query.items() if query not in in_demos][:most]


def repetition(
    answers: tuple[Sequence["Answer"], Sequence["Answer"]],
    grades: tuple[Sequence[ScoredAnswer], Sequence[ScoredAnswer]],
) -> Repetition:
    """Compare two rounds of answers to the same examples, in the same order. Raises ValueError without answers."""
    pairs = list(zip(*answers, strict=True))
    if not pairs:
        raise ValueError("there are no answers to compare")
    differences = [second.score - first.score for first, second in zip(*grades, strict=True)]
    return Repetition(
        asked=len(pairs),
        differing=sum(first.values != second.values for first, second in pairs),
        rescored=sum(difference != 0 for difference in differences),
        unreadable=sum(first.values is None or second.values is None for first, second in pairs),
        spread=spread(differences),
    )


def interval(share: float, of: int) -> tuple[float, float]:
    """Return the confidence interval of a share observed in `of` cases (Wilson, JASA 1927; two-sided, `CONFIDENCE`)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = share + z**2 / (2 * of)
    reach = z * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2)
    scale = 1 + z**2 / of
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def cost(spread_by_noise: float, alpha: float) -> Cost:
    """Estimate the cost of noise from the mean squared difference of the scores of one program asked twice.

    The model: each score of 0 or 1 flips with chance f. Then one program asked twice differs on a trace with chance
    d = 2f(1-f), and so do two programs that would agree; two that would differ still do with chance 1-d. The visible
    part of a gain is 1-2f, which is the square root of 1-2d.
    """
    differ = min(spread_by_noise, 0.5)
    real = FIXED + BROKEN
    seen = real * (1 - differ) + (1 - real) * differ
    gain = GOAL * math.sqrt(1 - 2 * differ)
    return Cost(
        alpha=alpha,
        noise=(1 - real) * differ / seen,
        gain=gain,
        needed=min(COUNTLESS, cases_needed(gain, alpha, seen)) if gain else COUNTLESS,
        needed_without_noise=cases_needed(GOAL, alpha, real),
    )


def describe_repetition(repetition: Repetition) -> str:
    """Return a sentence on how many answers differ."""
    share, (low, high) = (
        repetition.differing / repetition.asked,
        interval(repetition.differing / repetition.asked, repetition.asked),
    )
    unreadable = f"; {repetition.unreadable} of {repetition.asked} could not be read" if repetition.unreadable else ""
    if not repetition.differing:
        return (
            f"repeatable: all {repetition.asked} answers were the same the second time; "
            f"with 95 % confidence, at most {percent(high)} % of all answers differ{unreadable}"
        )
    return (
        f"{repetition.differing} of {repetition.asked} answers differ the second time, "
        f"{repetition.rescored} of them in score "
        f"({percent(share)} %, 95 % interval {percent(low)} % to {percent(high)} %){unreadable}"
    )


def describe_gate_impact(repetition: Repetition, alpha: float) -> str:
    """Return a sentence on what the noise means for the gate at `alpha`."""
    low, high = (_count(cost(share, alpha).needed) for share in interval(repetition.spread, repetition.asked))
    expected = cost(repetition.spread, alpha)
    candidate = (
        f"effect on the gate: a candidate that fixes {percent(FIXED)} % of traces and breaks {percent(BROKEN)} %"
    )
    about = "" if expected.needed == COUNTLESS else "about "
    needed = f"is proven by {about}{_count(expected.needed)} held-out traces"
    if not repetition.rescored:
        return f"{candidate} {needed} at alpha {alpha:.2g}, or by {high} if as many differ as these traces allow for"
    shown = f"shows {100 * expected.gain:.1f} of its {100 * GOAL:.0f} points, because {percent(expected.noise)} %"
    return (
        f"{candidate} {shown} of the differences are noise, and {needed} ({low} to {high}) at alpha {alpha:.2g} "
        f"instead of {expected.needed_without_noise}. Noise hides gains but fakes none, "
        "because it affects both programs"
    )


def _count(traces: int) -> str:
    return f"over {COUNTLESS:,}" if traces == COUNTLESS else f"{traces:,}"
