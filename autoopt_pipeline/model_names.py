"""Whether a client is known for a language model, by its name. No server is asked, and no key is read.

DSPy takes a second to import, and LiteLLM some more, which is imported only for a model that DSPy does not know.
"""

from functools import lru_cache

from autoopt_pipeline.errors import LMNotConfigured


@lru_cache(maxsize=100)
def check_model_name(model: str, api_base: str | None) -> None:
    """Raise `LMNotConfigured` where neither DSPy nor LiteLLM knows where to send what is for the model."""
    import dspy
    from dspy.utils.exceptions import LMError

    try:
        _ = dspy.LM(model, engine="lm15", cache=False, api_key="none").supported_params
    except LMError:
        check_provider(model, api_base)
    except ValueError:  # a provider and no model
        raise _unknown(model) from None


def check_provider(model: str, api_base: str | None) -> None:
    """Raise `LMNotConfigured` where LiteLLM knows no provider; DSPy would take the model for one of OpenAI's."""
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
    what = f"no provider is called {provider[:60]!r}" if slash and name else "it names no provider that is known"
    return LMNotConfigured(
        f"language model {model[:60]}: {what}", "name the model as DSPy does, e.g. openai/gpt-4o-mini"
    )
