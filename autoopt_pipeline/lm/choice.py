"""Which language models a tenant's configuration and the deployment's settings name. Imports no DSPy."""

from autoopt_pipeline.errors import LMNotConfigured
from autoopt_pipeline.settings import STAND_IN, Settings
from autoopt_pipeline.tenants.config import LMPrice, LMSettings, RoutingConfigUnified


def answering_models(config: RoutingConfigUnified, settings: Settings) -> tuple[str, ...]:
    """Return the names of the models that programs of a tenant can ask: its own first. Raises `LMNotConfigured`."""
    own = resolve_lm(config.lm, settings)
    return (own.model, *sorted(lm.model for lm in resolve_candidates(config, settings)))


def resolve_candidates(config: RoutingConfigUnified, settings: Settings) -> list[LMSettings]:
    """Return a tenant's candidate models, without one that is its own. Raises `LMNotConfigured` as `resolve_lm`."""
    own = resolve_lm(config.lm, settings)
    return [with_price(lm, settings) for lm in config.candidate_lms if lm.model != own.model]


def resolve_lm(configured: LMSettings | None, settings: Settings) -> LMSettings:
    """Return a tenant's language model, or the deployment's. Raises `LMNotConfigured` if there is neither.

    The stand-in is the default only if nothing is configured for production.
    """
    if configured:
        return with_price(configured, settings)
    if settings.lm:
        return LMSettings(
            model=settings.lm,
            api_base=settings.lm_api_base,
            api_key_env=settings.lm_api_key_env,
            price=_price(settings.lm_price),
        )
    if settings.embedded:
        return LMSettings(model=STAND_IN)
    raise LMNotConfigured(
        "no language model is configured",
        f"set AUTOOPT_LM (e.g. openai/gpt-4o-mini, or {STAND_IN} to try things offline), or 'lm' of the tenant",
    )


def resolve_teacher(configured: LMSettings | None, settings: Settings, answering: LMSettings) -> LMSettings:
    """Return the model that writes instructions and demos: the tenant's, the deployment's, or the answering model."""
    if configured:
        return with_price(configured, settings)
    if settings.teacher_lm:
        return LMSettings(
            model=settings.teacher_lm,
            api_base=settings.teacher_lm_api_base,
            api_key_env=settings.teacher_lm_api_key_env,
            price=_price(settings.teacher_lm_price),
        )
    return answering


def with_price(configured: LMSettings, settings: Settings) -> LMSettings:
    """Return a tenant's model with the deployment's price, if it is the deployment's model and has no price."""
    known = (
        (settings.lm, settings.lm_api_base, settings.lm_price),
        (settings.teacher_lm, settings.teacher_lm_api_base, settings.teacher_lm_price),
    )
    for model, api_base, price in known:
        if configured.price is None and price and (configured.model, configured.api_base) == (model, api_base):
            return configured.model_copy(update={"price": _price(price)})
    return configured


def _price(text: str | None) -> LMPrice | None:
    if text is None:
        return None
    read, written, *cached = map(float, text.split("/"))
    return LMPrice(input=read, output=written, cached_input=cached[0] if cached else None)
