"""Budgets in dollars end a run as those in tokens do, and need a price."""

import pytest
from pydantic import ValidationError

from autoopt_pipeline.errors import InvalidSettings, LMNotConfigured
from autoopt_pipeline.lm.choice import resolve_lm, resolve_teacher, with_price
from autoopt_pipeline.lm.metering import BudgetExhausted, Meter, Role
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.lm.prices import CallCost
from autoopt_pipeline.settings import Settings, load_settings
from autoopt_pipeline.tenants.config import Budget, LMPrice, LMSettings

A_CENT = CallCost(1000, 10, 0, 0.01)


def test_calls_end_when_the_dollars_are_spent() -> None:
    meter = Meter(100, 10**9, max_dollars=0.05)
    with pytest.raises(BudgetExhausted, match=r"about \$0\.05 of \$0\.05 are spent"):
        for _ in range(100):
            meter.admit(Role.ANSWERS)
            meter.add_cost(Role.ANSWERS, A_CENT)
    assert meter.calls == 5


def test_the_dollars_of_calls_that_are_held_back_stay() -> None:
    meter = Meter(100, 10**9, max_dollars=0.10)
    meter.add_cost(Role.ANSWERS, A_CENT)
    meter.add_cost(Role.TEACHER, CallCost(1, 1, 0, 0.04))
    with meter.holding_back(5), pytest.raises(BudgetExhausted):
        meter.admit(Role.ANSWERS)
    meter.admit(Role.ANSWERS)


def test_one_call_of_unknown_price_makes_the_sum_unknown_and_the_limit_counts_the_others() -> None:
    meter = Meter(100, 10**9, max_dollars=0.015)
    for cost in (A_CENT, None, A_CENT):
        meter.add_cost(Role.ANSWERS, cost)
    assert (meter.dollars, meter.known_dollars) == (None, 0.02)
    with pytest.raises(BudgetExhausted):
        meter.admit(Role.ANSWERS)


@pytest.mark.parametrize(
    ("role", "field"), [(Role.ANSWERS, "lm.price"), (Role.TEACHER, "teacher_lm.price"), (Role.JUDGE, "judge.lm.price")]
)
def test_a_budget_in_dollars_without_a_price_is_an_error_that_names_the_field(role: Role, field: str) -> None:
    own = LMSettings(model="openai/ours", api_base="http://127.0.0.1:9")
    with pytest.raises(LMNotConfigured, match="its price is unknown") as error:
        metered_lm(own, Meter(1, 1, max_dollars=1.0), role)
    assert f"set {field}" in error.value.remedy
    metered_lm(own, Meter(1, 1), role)
    metered_lm(own.model_copy(update={"price": LMPrice(input=1, output=1)}), Meter(1, 1, max_dollars=1.0), role)


def test_the_deployments_price_is_that_of_its_model_also_where_a_tenant_names_it() -> None:
    settings = Settings(
        lm="openai/ours",
        lm_api_base="http://lm",
        lm_price="0.5/2",
        teacher_lm="openai/big",
        teacher_lm_price="5/20/0.5",
    )
    price = LMPrice(input=0.5, output=2)
    answering = resolve_lm(None, settings)
    assert answering.price == price
    assert resolve_teacher(None, settings, answering).price == LMPrice(input=5, output=20, cached_input=0.5)
    same = LMSettings(model="openai/ours", api_base="http://lm", concurrency=2)
    assert resolve_lm(same, settings).price == price
    assert with_price(same.model_copy(update={"model": "openai/other"}), settings).price is None
    cheaper = same.model_copy(update={"price": LMPrice(input=0, output=0)})
    assert resolve_lm(cheaper, settings) == cheaper


@pytest.mark.parametrize("text", ["0.15", "free", "1/2/3/4", "-1/2", "1,5/2"])
def test_a_price_that_is_none_is_told_in_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOOPT_LM_PRICE", text)
    with pytest.raises(InvalidSettings, match=r"AUTOOPT_LM_PRICE: '.*' is not a price in dollars"):
        load_settings()


@pytest.mark.parametrize("dollars", [0, -1, "much"])
def test_a_budget_of_a_run_is_some_dollars(dollars: object) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate({"max_dollars": dollars})
