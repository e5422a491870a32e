"""Prices of language models: configured, from LiteLLM's table, or unknown."""

import pytest
from dspy.lm15 import Message, Response, TextPart, Usage

from autoopt_pipeline.lm.prices import call_cost, known_price
from autoopt_pipeline.tenants.config import LMPrice, LMSettings


@pytest.mark.parametrize(
    "model", ["openai/gpt-4o-mini", "anthropic/claude-haiku-4-5", "gemini/gemini-2.5-flash", "groq/openai/gpt-oss-20b"]
)
def test_litellms_table_has_the_prices_of_providers(model: str) -> None:
    price = known_price(LMSettings(model=model))
    assert price
    assert 0 < price.input < price.output < 100
    assert price.cached_input is None or price.cached_input < price.input


def test_the_price_of_an_endpoint_of_your_own_is_unknown_until_you_set_it() -> None:
    own = {"model": "openai/gpt-4o-mini", "api_base": "http://127.0.0.1:9/v1"}
    assert known_price(LMSettings.model_validate(own)) is None
    assert known_price(LMSettings.model_validate(own | {"price": {"input": 1, "output": 2}})) == LMPrice(
        input=1, output=2
    )


@pytest.mark.parametrize("model", ["stand-in", "openai/nobody-knows-this", "nonsense/gpt-4o-mini", "gpt-4o-mini"])
def test_what_the_table_lacks_is_unknown(model: str) -> None:
    assert known_price(LMSettings(model=model)) is None


def response(**usage: int) -> Response:
    return Response("x", "x", Message.assistant([TextPart("x")]), "stop", Usage(**usage))


def test_tokens_from_the_cache_cost_as_the_others_where_no_price_says_otherwise() -> None:
    given = response(input_tokens=1000, output_tokens=0, cache_read_tokens=800)
    with_cache, without = (call_cost(given, LMPrice(input=2, output=3, cached_input=c)) for c in (1, None))
    assert with_cache
    assert without
    assert (with_cache.dollars, without.dollars) == (pytest.approx(0.0012), pytest.approx(0.002))


def test_reasoning_that_only_the_total_counts_is_paid_as_output() -> None:
    cost = call_cost(response(input_tokens=10, output_tokens=5, total_tokens=115), LMPrice(input=0, output=1e6))
    assert cost
    assert (cost.output_tokens, cost.dollars) == (105, 105)


def test_without_its_tokens_a_call_has_no_known_cost() -> None:
    assert call_cost(response(), LMPrice(input=1, output=1)) is None
