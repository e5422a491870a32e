"""Daily LM budgets: what is used of a UTC day, and what remains. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime

from autoopt_pipeline.tenants.config import Budget, DailyBudget

_LEAST_DOLLARS = 1e-6


def utc_day_start(now: datetime) -> datetime:
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@dataclass(frozen=True)
class LMUsage:
    """Calls, tokens and dollars of language models, teachers included. Unknown dollars are left out."""

    lm_calls: int = 0
    lm_tokens: int = 0
    lm_dollars: float = 0.0

    def __add__(self, other: "LMUsage") -> "LMUsage":
        return LMUsage(
            self.lm_calls + other.lm_calls, self.lm_tokens + other.lm_tokens, self.lm_dollars + other.lm_dollars
        )


@dataclass(frozen=True)
class RemainingBudget:
    """What the daily budget of `owner` leaves of a UTC day."""

    owner: str
    limit: DailyBudget
    used: LMUsage

    @property
    def exhausted_reason(self) -> str | None:
        """In words, which limit is reached; None while something remains."""
        limits = (
            (self.used.lm_calls, self.limit.max_lm_calls, "LM calls"),
            (self.used.lm_tokens, self.limit.max_tokens, "tokens"),
            (round(self.used.lm_dollars, 4), self.limit.max_dollars, "dollars"),
        )
        for used, limit, what in limits:
            if limit is not None and used >= limit:
                return f"{used} of {limit} {what} a day are spent ({self.owner})"
        return None

    def cap(self, budget: Budget, modules: int) -> Budget:
        """The budget of one of `modules` that run side by side, so that together they stay within what remains.

        It keeps at least one call, one token and a millionth dollar: `exhausted_reason` says whether anything remains.
        """
        calls, tokens, dollars = self.limit.max_lm_calls, self.limit.max_tokens, self.limit.max_dollars
        if calls is not None:
            remaining = max(1, (calls - self.used.lm_calls) // modules)
            budget = budget.model_copy(update={"max_lm_calls": min(budget.max_lm_calls, remaining)})
        if tokens is not None:
            remaining = max(1, (tokens - self.used.lm_tokens) // modules)
            budget = budget.model_copy(update={"max_tokens": min(budget.max_tokens, remaining)})
        if dollars is not None:
            left = max(_LEAST_DOLLARS, (dollars - self.used.lm_dollars) / modules)
            budget = budget.model_copy(update={"max_dollars": min(budget.max_dollars or left, left)})
        return budget
