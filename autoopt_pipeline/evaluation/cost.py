"""Measures what a program's decisions cost. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoopt_pipeline.registry.program_cost import ProgramCost

if TYPE_CHECKING:
    from autoopt_pipeline.lm.metering import Heard


@dataclass(frozen=True)
class DecisionCost:
    """What one decision uses of language models; nothing if it needs none.

    `dollars` is None if a price is unknown, and `seconds` if an answer was kept from earlier without
    the time of its call.
    """

    lm_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    dollars: float | None = 0.0
    seconds: float | None = None


def decision_cost(heard: "Heard", seconds: float) -> DecisionCost | None:
    """Return the cost of a decision that took so many seconds, or None if an endpoint did not report its tokens."""
    calls = [call for call in heard.costs if call is not None]
    if len(calls) < len(heard.costs):
        return None
    dollars = [call.dollars for call in calls if call.dollars is not None]
    return DecisionCost(
        lm_calls=len(calls),
        input_tokens=sum(call.input_tokens for call in calls),
        output_tokens=sum(call.output_tokens for call in calls),
        cached_tokens=sum(call.cached_tokens for call in calls),
        dollars=math.fsum(dollars) if len(dollars) == len(calls) else None,
        seconds=None if heard.recalled is None else max(0.0, seconds - heard.paused) + heard.recalled,
    )


def measured(decisions: Iterable[DecisionCost | None]) -> ProgramCost | None:
    """Return the cost of a program by its decisions. Those that nobody could measure are None, and are left out."""
    known = [decision for decision in decisions if decision is not None]
    if not known:
        return None
    dollars = [decision.dollars for decision in known if decision.dollars is not None]
    seconds = sorted(decision.seconds for decision in known if decision.seconds is not None)
    return ProgramCost(
        decisions=len(known),
        lm_calls=_mean([decision.lm_calls for decision in known]),
        input_tokens=_mean([decision.input_tokens for decision in known]),
        output_tokens=_mean([decision.output_tokens for decision in known]),
        cached_tokens=_mean([decision.cached_tokens for decision in known]),
        dollars=_mean(dollars) if len(dollars) == len(known) else None,
        timed=len(seconds),
        seconds_p50=_percentile(seconds, 0.50),
        seconds_p95=_percentile(seconds, 0.95),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that no more than `1 - share` of all values exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
