"""Daily LM budgets: plain values in, plain values out."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.scheduling.budgets import LMUsage, RemainingBudget, utc_day_start
from autoopt_pipeline.tenants.config import Budget, DailyBudget

limits = st.builds(
    DailyBudget,
    max_lm_calls=st.none() | st.integers(0, 9000),
    max_tokens=st.none() | st.integers(0, 9000),
    max_dollars=st.none() | st.floats(0, 90),
)
usages = st.builds(LMUsage, lm_calls=st.integers(0, 9000), lm_tokens=st.integers(0, 9000), lm_dollars=st.floats(0, 90))
budgets = st.builds(
    Budget,
    max_lm_calls=st.integers(1, 9000),
    max_tokens=st.integers(1, 9000),
    max_dollars=st.none() | st.floats(0.01, 90),
)


@given(limits, usages, budgets, st.integers(1, 5))
def test_modules_side_by_side_stay_together_within_what_is_left_of_the_day(
    limit: DailyBudget, spent: LMUsage, budget: Budget, modules: int
) -> None:
    remaining = RemainingBudget("this tenant", limit, spent)
    each = remaining.cap(budget, modules)
    assert each.max_lm_calls <= budget.max_lm_calls
    assert each.max_tokens <= budget.max_tokens
    if limit.max_lm_calls is not None and limit.max_lm_calls - spent.lm_calls >= modules:
        assert spent.lm_calls + modules * each.max_lm_calls <= limit.max_lm_calls
    if limit.max_dollars is None:
        assert each.max_dollars == budget.max_dollars
    else:
        assert each.max_dollars is not None
        assert 0 < each.max_dollars <= (budget.max_dollars or 90)
        if limit.max_dollars - spent.lm_dollars > 0.01:
            assert spent.lm_dollars + modules * each.max_dollars <= limit.max_dollars + 1e-9
    if limit == DailyBudget():
        assert (each, remaining.exhausted_reason) == (budget, None)


def test_what_is_used_up_is_said_in_numbers() -> None:
    limit = DailyBudget(max_lm_calls=100, max_tokens=5000)
    assert RemainingBudget("this tenant", limit, LMUsage(99, 4999)).exhausted_reason is None
    assert RemainingBudget("this tenant", limit, LMUsage(120, 0)).exhausted_reason == (
        "120 of 100 LM calls a day are spent (this tenant)"
    )
    assert "5000 of 5000 tokens" in str(
        RemainingBudget("all tenants together", limit, LMUsage(0, 5000)).exhausted_reason
    )


def test_dollars_of_a_day_are_used_up_like_tokens() -> None:
    remaining = RemainingBudget(
        "this tenant", DailyBudget(max_dollars=2.5), LMUsage(9, 90, 2.4999) + LMUsage(1, 1, 0.5)
    )
    assert remaining.exhausted_reason == "2.9999 of 2.5 dollars a day are spent (this tenant)"
    assert RemainingBudget("x", DailyBudget(max_dollars=2.5), LMUsage(9, 90, 2.4)).exhausted_reason is None


def test_a_day_is_one_of_utc() -> None:
    new_york = datetime.fromisoformat("2026-01-05T23:30:00-05:00")
    assert utc_day_start(new_york) == datetime(2026, 1, 6, tzinfo=UTC)
