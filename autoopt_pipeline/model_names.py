"""Checks whether DSPy or LiteLLM has a client for a language model. Sends no request, and reads no key.

Importing DSPy takes a second, and LiteLLM longer, so only a model that DSPy does not know imports LiteLLM.
"""

from functools import lru_cache

from autoopt_pipeline.errors import LMNotConfigured


@lru_cache(maxsize=100)
def check_model_name(model: str, api_base: str | None) -> None:
    """Raise `LMNotConfigured` if neither DSPy nor LiteLLM knows the model's provider."""
    import dspy
    from dspy.utils.exceptions import LMError

    try:
        _ = dspy.LM(model, engine="lm15", cache=False, api_key="none").supported_params
    except LMError:
        check_provider(model, api_base)
    except ValueError:  # a provider without a model
        raise _unknown(model) from None


def check_provider(model: str, api_base: str | None) -> None:
    """Raise `LMNotConfigured` if LiteLLM knows no provider of the model. DSPy would assume OpenAI."""
    import litellm

    quiet, litellm.suppress_debug_info = litellm.suppress_debug_info, True
    try:
        litellm.get_llm_provider(model, api_base=api_base)
    except litellm.exceptions.BadRequestError:
        raise _unknown(model) from None
    finally:
        litellm.suppress_debug_info = quiet


def _unknown(model: str) -> LMNotConfigured:
    provider, slash, name = model.partition("/")
    what = f"unknown provider {provider[:60]!r}" if slash and name else "its provider is unknown"
    return LMNotConfigured(
        f"language model {model[:60]}: {what}", "name the model as DSPy does, e.g. openai/gpt-4o-mini"
    )
