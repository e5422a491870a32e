"""What a configuration names that has to be there beside it: modules, and language models. Checked when it is written.

A configuration that is read may name a module whose package is gone: that is then an error of that module alone.
"""

from functools import lru_cache

from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenants.config import LMSettings, RoutingConfigUnified, check_modules


def check_names(config: RoutingConfigUnified) -> None:
    """Raise `InvalidConfig` where the configuration names a module that is not installed, or a language model that no
    client here can speak to. No server is asked, and no key is read."""
    check_modules(config)
    for field, error in wrong_models(config).items():
        raise InvalidConfig(f"tenant {config.tenant_id}: {field}: {error.what}", error.remedy)


def wrong_models(config: RoutingConfigUnified) -> dict[str, InvalidConfig]:
    """What is wrong with the language models, by the field that names each."""
    named = {"lm.model": config.lm, "teacher_lm.model": config.teacher_lm}
    return {field: error for field, lm in named.items() if lm and (error := _wrong_model(lm))}


@lru_cache(maxsize=100)
def _wrong_model(lm: LMSettings) -> InvalidConfig | None:
    """Kept, because many tenants name the same few."""
    if lm.model == STAND_IN:
        return None
    # DSPy takes a second to import, so only who names a model waits for it.
    from autoopt_pipeline.lm.models import check_usable

    try:
        check_usable(lm)
    except InvalidConfig as e:
        return e
    return None
