"""Whether a program gives the same answers when it is asked twice, and what it costs the gate where it does not. Pure.

Noise is in the answers of both programs that the gate compares, so it favours neither. It adds differences that say
nothing, and these hide the others: a gain takes more held-out traces to be seen.
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

# Of all traces, what the candidate fixes and breaks by which noise is measured: it gains `GOAL`.
FIXED, BROKEN = 0.10, 0.05

CONFIDENCE = 0.95

# Held-out traces that nobody will ever have.
COUNTLESS = 100_000


@dataclass(frozen=True)
class Repetition:
    """What came of asking one program the same examples twice.

    `differing` counts the examples with two different answers, `rescored` those of them with two different scores, and
    `unreadable` those without a valid answer at least once. `spread` is the mean squared difference of the scores.
    """

    asked: int
    differing: int
    rescored: int
    unreadable: int
    spread: float


@dataclass(frozen=True)
class Cost:
    """What noise does to the test at `alpha` of a candidate that fixes `FIXED` of all traces and breaks `BROKEN`.

    `noise` is its share of the differences that the gate sees, and `gain` what is left of the candidate's `GOAL`.
    `needed` are the held-out traces that prove it, at most `COUNTLESS`, and `needed_without_noise` would if the model
    repeated itself.
    """

    alpha: float
    noise: float
    gain: float
    needed: int
    needed_without_noise: int


def newest(examples: Sequence[Example], shown: Collection[str], most: int) -> list[Example]:
    """The newest examples, each query once, without those that the program shows the model as demos."""
    in_demos = {normalize_query(query) for query in shown}
    by_query: dict[str, Example] = {}
    for example in sorted(examples, key=lambda each: (each.time, each.span_id), reverse=True):
        by_query.setdefault(normalize_query(example.query), example)
    return [example for query, example in by_query.items() if query not in in_demos][:most]


def repetition(
    answers: tuple[Sequence["Answer"], Sequence["Answer"]],
    grades: tuple[Sequence[ScoredAnswer], Sequence[ScoredAnswer]],
) -> Repetition:
    """Compare two askings of the same examples, in the same order. Raises ValueError without any."""
    pairs = list(zip(*answers, strict=True))
    if not pairs:
        raise ValueError("nothing was asked")
    differences = [second.score - first.score for first, second in zip(*grades, strict=True)]
    return Repetition(
        asked=len(pairs),
        differing=sum(first.values != second.values for first, second in pairs),
        rescored=sum(difference != 0 for difference in differences),
        unreadable=sum(first.values is None or second.values is None for first, second in pairs),
        spread=spread(differences),
    )


def interval(share: float, of: int) -> tuple[float, float]:
    """Where the true share lies, given one that was seen in `of` cases (Wilson, JASA 1927; two-sided, `CONFIDENCE`)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = share + z**2 / (2 * of)
    reach = z * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2)
    scale = 1 + z**2 / of
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def cost(spread_by_noise: float, alpha: float) -> Cost:
    """What noise costs, by the mean squared difference of the scores of two askings of one program.

    As if a score of 0 or 1 flipped with chance f, either way: two askings differ with chance d = 2f(1-f), two programs
    that are right on the same traces as well, and others with chance 1-d; and 1-2f is left of a gain, the root of 1-2d.
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


def told(found: Repetition) -> str:
    """How many answers differ, in words."""
    share, (low, high) = found.differing / found.asked, interval(found.differing / found.asked, found.asked)
    unreadable = f"; {found.unreadable} of {found.asked} could not be read" if found.unreadable else ""
    if not found.differing:
        return (
            f"repeatable: all {found.asked} answers were the same the second time; "
            f"at most {percent(high)} % of all differ, with 95 % confidence{unreadable}"
        )
    return (
        f"{found.differing} of {found.asked} answers differ the second time, {found.rescored} of them in score "
        f"({percent(share)} %, 95 % interval {percent(low)} % to {percent(high)} %){unreadable}"
    )


def told_of_gate(found: Repetition, alpha: float) -> str:
    """What that means for the gate, in words."""
    low, high = (_count(cost(share, alpha).needed) for share in interval(found.spread, found.asked))
    expected = cost(found.spread, alpha)
    candidate = f"for the gate: a candidate that fixes {percent(FIXED)} % of traces and breaks {percent(BROKEN)} %"
    about = "" if expected.needed == COUNTLESS else "about "
    needed = f"is proven by {about}{_count(expected.needed)} held-out traces"
    if not found.rescored:
        return (
            f"{candidate} {needed} at alpha {alpha:.2g}, and by {high} if the most differ that these traces leave open"
        )
    shown = f"shows {100 * expected.gain:.1f} of its {100 * GOAL:.0f} points, as {percent(expected.noise)} %"
    return (
        f"{candidate} {shown} of the differences are noise, and {needed} ({low} to {high}) at alpha {alpha:.2g} "
        f"in place of {expected.needed_without_noise}. Noise hides gains and fakes none: both programs are asked alike"
    )


def _count(traces: int) -> str:
    return f"over {COUNTLESS:,}" if traces == COUNTLESS else f"{traces:,}"
