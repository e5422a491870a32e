"""What a decision of a program costs: tokens, dollars and time. Plain values, and their words."""

from collections.abc import Mapping
from contextlib import suppress

from pydantic import BaseModel, ConfigDict, ValidationError

# The two programs of a comparison, as manifests and reports name them.
INCUMBENT, CANDIDATE = "incumbent", "candidate"


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
        return f"{_seconds(self.seconds_p50)} (p95 {_seconds(self.seconds_p95)})"


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
    """Return how much cheaper or dearer the candidate is than the incumbent; "" if a price is unknown or 0."""
    before, after = (costs[name].dollars if name in costs else None for name in (INCUMBENT, CANDIDATE))
    if not before or after is None:
        return ""
    return f"the candidate is {abs(100 * (1 - after / before)):.0f} % {'cheaper' if after <= before else 'dearer'}"


def tokens_text(tokens: float) -> str:
    return f"{tokens:,.0f} tokens"


def dollars_text(dollars: float | None) -> str:
    """`$0.00012`, with two digits that count; below one cent they are small."""
    if dollars is None:
        return "dollars unknown"
    if dollars == 0 or dollars >= 1:
        return f"${dollars:,.2f}"
    return f"about ${float(f'{dollars:.2g}'):.10f}".rstrip("0")


def _seconds(seconds: float) -> str:
    if seconds < 0.001:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1000 * seconds:.0f} ms" if seconds < 0.1 else f"{seconds:.1f} s"
