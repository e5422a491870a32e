"""What a decision of a program costs: tokens, dollars and time, and what one program saves beside another."""

import math
from collections.abc import Mapping
from contextlib import suppress

from pydantic import BaseModel, ConfigDict, ValidationError

# The two programs of a comparison, as manifests and reports name them.
INCUMBENT, CANDIDATE = "incumbent", "candidate"

# Fewest timed decisions of each program for a comparison of their times.
MIN_TIMED = 50

# A decision that takes fewer seconds at p95 is fast enough. Nobody notices what is saved, and chance would decide.
NOTICED_SECONDS = 0.1


class ProgramCost(BaseModel):
    """The means of `decisions` whose tokens are known, and the seconds of `timed` decisions whose time is known.

    An answer that was kept from earlier counts with the tokens and seconds that its call took. `cached_tokens` is the
    part of `input_tokens` from a provider's prompt cache. The seconds are those of the program alone, with as many
    concurrent calls as the run had. None is unknown, and never free.
    """

    model_config = ConfigDict(frozen=True)

    decisions: int
    lm_calls: float
    input_tokens: float
    output_tokens: float
    cached_tokens: float
    dollars: float | None = None
    timed: int = 0
    seconds_p50: float | None = None
    seconds_p95: float | None = None

    @property
    def tokens(self) -> float:
        return self.input_tokens + self.output_tokens

    def __str__(self) -> str:
        return f"{tokens_text(self.tokens)}, {dollars_text(self.dollars)}, {self.seconds}"

    @property
    def seconds(self) -> str:
        """`0.4 s (p95 0.9 s)`."""
        if self.seconds_p50 is None or self.seconds_p95 is None:
            return "time unknown"
        return f"{seconds_text(self.seconds_p50)} (p95 {seconds_text(self.seconds_p95)})"


def read_costs(value: object) -> dict[str, ProgramCost]:
    """Return costs by program as a run reports them. Anything else, which a person may have reported, is left out."""
    costs = {}
    for program, cost in value.items() if isinstance(value, Mapping) else ():
        with suppress(ValidationError):
            costs[str(program)] = ProgramCost.model_validate(cost)
    return costs


def describe_costs(costs: Mapping[str, ProgramCost], program: str = CANDIDATE) -> str:
    """Return what a decision of a program costs, and of the other one that it was compared with; "" if unknown."""
    own, other = costs.get(program), INCUMBENT if program == CANDIDATE else CANDIDATE
    if own is None:
        return ""
    text = f"a decision costs {tokens_text(own.tokens)}, {dollars_text(own.dollars)}, and takes {own.seconds}"
    text = f"{text}; the {other}'s {costs[other]}" if other in costs else text
    saving = describe_saving(costs) if program == CANDIDATE else ""
    return f"{text}; {saving}" if saving else text


def describe_saving(costs: Mapping[str, ProgramCost]) -> str:
    """Say how much cheaper or dearer the candidate is than the incumbent; "" if that is unknown."""
    ratio = dollar_ratio(costs.get(CANDIDATE), costs.get(INCUMBENT))
    if ratio is None or not math.isfinite(ratio):
        return ""
    return f"the candidate costs {100 * abs(1 - ratio):.0f} % {'less' if ratio <= 1 else 'more'}"


def cost_ratio(candidate: ProgramCost | None, incumbent: ProgramCost | None, *, same_lms: bool = True) -> float | None:
    """Return the candidate's cost divided by the incumbent's: of dollars if both are known, else of tokens.

    Tokens of different language models cannot be compared, unless the candidate uses none. Return None if a cost is
    unknown, and infinity if only the incumbent costs nothing.
    """
    if candidate is None or incumbent is None:
        return None
    dollars = dollar_ratio(candidate, incumbent)
    if dollars is None and (same_lms or not candidate.tokens):
        return _ratio(candidate.tokens, incumbent.tokens)
    return dollars


def dollar_ratio(candidate: ProgramCost | None, incumbent: ProgramCost | None) -> float | None:
    """Return the candidate's dollars divided by the incumbent's; None if either is unknown, or both are free."""
    if candidate is None or incumbent is None or candidate.dollars is None or incumbent.dollars is None:
        return None
    return _ratio(candidate.dollars, incumbent.dollars) if candidate.dollars or incumbent.dollars else None


def saving(
    candidate: ProgramCost | None, incumbent: ProgramCost | None, least: float, *, same_lms: bool = True
) -> str | None:
    """Say what a candidate saves if that is at least a share `least` of the incumbent's cost or time; else None.

    `same_lms` tells whether both ask the same language models. Time counts if the cost does not rise. It has to fall at
    the median and at p95, because p95 alone varies by chance.
    """
    ratio = cost_ratio(candidate, incumbent, same_lms=same_lms)
    if candidate is None or incumbent is None or ratio is None:
        return None
    if 1 - ratio >= least:
        return f"a decision costs {_percent_less(ratio)} less"
    old, new = (incumbent.seconds_p50, incumbent.seconds_p95), (candidate.seconds_p50, candidate.seconds_p95)
    if ratio > 1 or min(candidate.timed, incumbent.timed) < MIN_TIMED:
        return None
    if incumbent.seconds_p95 is None or incumbent.seconds_p95 < NOTICED_SECONDS:
        return None
    times = [after / before for before, after in zip(old, new, strict=True) if before and after is not None]
    if len(times) == 2 and 1 - max(times) >= least:
        return f"a decision takes {_percent_less(times[1])} less time at p95"
    return None


def _ratio(new: float, old: float) -> float:
    if not old:
        return math.inf if new else 1.0
    return new / old


def _percent_less(ratio: float) -> str:
    return f"{100 * (1 - ratio):.0f} %"


def tokens_text(tokens: float) -> str:
    return f"{tokens:,.0f} tokens"


def dollars_text(dollars: float | None) -> str:
    """`$0.00012`, with two digits that count; below one cent they are small."""
    if dollars is None:
        return "dollars unknown"
    if dollars == 0 or dollars >= 1:
        return f"${dollars:,.2f}"
    return f"about ${float(f'{dollars:.2g}'):.10f}".rstrip("0")


def seconds_text(seconds: float) -> str:
    """`80 µs`, `12 ms` or `1.4 s`."""
    if seconds < 0.001:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1000 * seconds:.0f} ms" if seconds < 0.1 else f"{seconds:.1f} s"
