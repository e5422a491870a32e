"""What decisions cost, measured. Kept answers are not free, and neither is what is unknown."""

import math
import time
from typing import Any

import dspy
import pytest
from dspy.lm15 import Message, Request, Response, TextPart, Usage

from autoopt_pipeline.evaluation.cost import DecisionCost, measured
from autoopt_pipeline.evaluation.runner import answer_all, costs_of
from autoopt_pipeline.lm.metering import Meter, MeteredEngine, Role, note_pause
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.registry.program_cost import ProgramCost, cost_ratio, dollars_text, saving
from autoopt_pipeline.tenants.config import LMPrice
from tests.support.labeled_requests import LABELS
from tests.support.sample_decisions import example

ROUTING = get_module("routing")
PRICE = LMPrice(input=1.0, output=10.0, cached_input=0.5)
WAITED = 0.25


class Endpoint:
    """Answers after a moment. Before some requests, it makes us wait."""

    def __init__(self, usage: Usage, *, pause: bool = False) -> None:
        self.usage, self.pause = usage, pause

    def complete(self, request: Request) -> Response:
        time.sleep(0.02)
        if self.pause:
            time.sleep(WAITED)
            note_pause(WAITED)
        message = Message.assistant([TextPart("[[ ## agent ## ]]\nsearch_agent\n\n[[ ## confidence ## ]]\n0.5")])
        return Response(id="x", model="x", message=message, finish_reason="stop", usage=self.usage)


def lm_of(engine: Endpoint, price: LMPrice | None = PRICE) -> MeteredLM:
    meter = Meter(100, 10**6)
    metered = MeteredEngine(engine, "test", meter, Role.ANSWERS, price=price)
    return MeteredLM(dspy.LM("test/test", engine=metered, cache=False, num_retries=0), meter, "test", 4, False)


def cost_of(lm: MeteredLM, queries: list[str], program: dspy.Module | None = None) -> ProgramCost | None:
    program = program or ROUTING.build_program(LABELS)
    return costs_of({"x": answer_all(ROUTING, program, [example(q, "a") for q in queries], lm)}).get("x")


def test_a_decision_costs_its_tokens_at_their_prices_and_the_time_of_its_program() -> None:
    lm = lm_of(Endpoint(Usage(input_tokens=1000, output_tokens=100, cache_read_tokens=400)))
    cost = cost_of(lm, ["one", "two"])
    assert cost
    assert (cost.decisions, cost.input_tokens, cost.output_tokens, cost.cached_tokens) == (2, 1000, 100, 400)
    assert cost.dollars == pytest.approx((600 * 1.0 + 400 * 0.5 + 100 * 10.0) / 1e6)
    assert lm.meter.dollars == pytest.approx(2 * 0.0018)
    assert cost.timed == 2
    assert cost.seconds_p50 is not None
    assert cost.seconds_p50 >= 0.02


def test_a_kept_answer_has_the_tokens_and_the_seconds_of_its_call() -> None:
    lm = lm_of(Endpoint(Usage(input_tokens=50, output_tokens=5)))
    first, again = cost_of(lm, ["one"]), cost_of(lm, ["one", "two"])
    assert first
    assert again
    assert (lm.meter.calls, lm.meter.tokens) == (2, 110)
    assert (again.decisions, again.tokens, again.dollars) == (2, 55, first.dollars)
    assert again.timed == 2
    assert again.seconds_p50 is not None
    assert again.seconds_p50 >= 0.02


def test_a_pause_that_the_endpoint_asks_for_is_not_the_programs_time() -> None:
    cost = cost_of(lm_of(Endpoint(Usage(input_tokens=1, output_tokens=1), pause=True)), ["one"])
    assert cost
    assert cost.seconds_p95 is not None
    assert 0.02 <= cost.seconds_p95 < WAITED


def test_tokens_that_are_not_reported_are_unknown_and_not_0() -> None:
    lm = lm_of(Endpoint(Usage()))
    assert cost_of(lm, ["one"]) is None
    assert lm.meter.dollars is None


def test_a_price_that_is_unknown_makes_the_dollars_unknown() -> None:
    lm = lm_of(Endpoint(Usage(input_tokens=10, output_tokens=5)), price=None)
    cost = cost_of(lm, ["one"])
    assert cost
    assert (cost.tokens, cost.dollars, lm.meter.dollars) == (15, None, None)
    assert "dollars unknown" in str(cost)


class Local(dspy.Module):
    """Decides without a language model."""

    def forward(self, **inputs: str) -> dspy.Prediction:
        return dspy.Prediction(agent="search_agent", confidence=0.9, reasoning="")


def test_a_program_without_a_language_model_costs_no_tokens_and_no_dollars_but_time() -> None:
    cost = cost_of(lm_of(Endpoint(Usage()), price=None), ["one", "two"], Local())
    assert cost
    assert (cost.lm_calls, cost.tokens, cost.dollars, cost.timed) == (0, 0, 0, 2)
    assert cost.seconds_p95 is not None
    assert cost.seconds_p95 < 0.02


def test_percentiles_are_times_that_occurred() -> None:
    cost = measured([DecisionCost(seconds=float(n)) for n in range(1, 101)] + [DecisionCost(), None])
    assert cost
    assert (cost.decisions, cost.timed, cost.seconds_p50, cost.seconds_p95) == (101, 100, 50.0, 95.0)
    assert measured([]) is None


def test_a_cost_is_told_in_short() -> None:
    cost = ProgramCost(
        decisions=9,
        lm_calls=1,
        input_tokens=2900,
        output_tokens=50.4,
        cached_tokens=0,
        dollars=0.000463,
        timed=9,
        seconds_p50=0.4,
        seconds_p95=0.94,
    )
    assert str(cost) == "2,950 tokens, about $0.00046, 0.4 s (p95 0.9 s)"
    assert [dollars_text(n) for n in (None, 0, 0.025, 12.5)] == ["dollars unknown", "$0.00", "about $0.025", "$12.50"]


def program(tokens: float, dollars: float | None = None, p50: float | None = None, p95: float | None = None) -> Any:
    return ProgramCost(
        decisions=100,
        lm_calls=1,
        input_tokens=tokens,
        output_tokens=0,
        cached_tokens=0,
        dollars=dollars,
        timed=100,
        seconds_p50=p50,
        seconds_p95=p95,
    )


class TestWhatACandidateSaves:
    def test_is_counted_in_dollars_where_both_are_known_and_else_in_tokens(self) -> None:
        assert cost_ratio(program(100, 0.004), program(100, 0.002)) == 2
        assert cost_ratio(program(50, None), program(100, 0.002)) == 0.5
        assert cost_ratio(program(0, 0.0), program(10, 0.0)) == 0
        assert cost_ratio(program(10, 0.0), program(0, 0.0)) == math.inf
        assert cost_ratio(None, program(1)) is None

    def test_is_unknown_between_models_without_prices(self) -> None:
        assert cost_ratio(program(50), program(100), same_lms=False) is None
        assert cost_ratio(program(50, 0.001), program(100, 0.002), same_lms=False) == 0.5
        assert saving(program(0), program(100), 0.3, same_lms=False) == "a decision costs 100 % less"

    def test_is_said_if_it_is_enough(self) -> None:
        assert saving(program(60), program(100), 0.3) == "a decision costs 40 % less"
        assert saving(program(80), program(100), 0.3) is None
        assert saving(None, program(100), 0.3) is None

    def test_may_be_time_if_the_cost_does_not_rise(self) -> None:
        slow = program(100, p50=1.0, p95=4.0)
        assert saving(program(100, p50=0.5, p95=2.0), slow, 0.3) == "a decision takes 50 % less time at p95"
        assert saving(program(110, p50=0.5, p95=2.0), slow, 0.3) is None
        assert saving(program(100, p50=0.9, p95=2.0), slow, 0.3) is None
        few = program(100, p50=0.5, p95=2.0).model_copy(update={"timed": 10})
        assert saving(few, slow, 0.3) is None
