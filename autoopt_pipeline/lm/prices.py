"""What a call of a language model costs: its tokens as the endpoint reports them, and their price."""

from dataclasses import dataclass

from dspy.lm15 import Response

from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenants.config import LMPrice, LMSettings


@dataclass(frozen=True)
class CallCost:
    """Tokens of one call; `cached_tokens` are the part of `input_tokens` from a provider's prompt cache.

    `dollars` is None if the price is unknown.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int
    dollars: float | None


def call_cost(response: Response, price: LMPrice | None) -> CallCost | None:
    """Return the cost of a call, or None if the endpoint does not report its tokens."""
    usage = response.usage
    if usage is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    read, cached = usage.input_tokens, usage.cache_read_tokens or 0
    # Gemini and xAI count reasoning in the total, but not in what they call output. It is paid as output.
    written = max(usage.output_tokens, (usage.total_tokens or 0) - read)
    dollars = None
    if price is not None:
        cached_price = price.input if price.cached_input is None else price.cached_input
        dollars = (max(0, read - cached) * price.input + cached * cached_price + written * price.output) / 1e6
    return CallCost(read, written, cached, dollars)


def known_price(settings: LMSettings) -> LMPrice | None:
    """Return the configured price of a model, or its provider's by LiteLLM's table. None if it is unknown.

    An endpoint of your own has no price in the table, whatever its model is called. DSPy has a copy of the table, and
    reads it without importing LiteLLM.
    """
    if settings.price or settings.api_base or settings.model == STAND_IN:
        return settings.price
    from dspy.clients.model_metadata import model_info, rate

    provider, _, name = settings.model.partition("/")
    info = model_info(provider, name) if name else {}
    read, written = rate(info, "input_cost_per_token"), rate(info, "output_cost_per_token")
    if read is None or written is None:
        return None
    cached = rate(info, "cache_read_input_token_cost")
    return LMPrice(input=1e6 * read, output=1e6 * written, cached_input=None if cached is None else 1e6 * cached)
