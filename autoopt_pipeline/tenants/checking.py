"""What a configuration names that has to be there beside it: modules, and language models. Checked when it is written.

A configuration that is read may name a module whose package is gone: that is then an error of that module alone.
"""

from autoopt_pipeline.errors import InvalidConfig, LMNotConfigured
from autoopt_pipeline.model_names import check_model_name
from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenants.config import RoutingConfigUnified, check_modules


def check_names(config: RoutingConfigUnified) -> None:
    """Raise `InvalidConfig` where the configuration names a module that is not installed, or a language model that no
    client here can speak to."""
    check_modules(config)
    for field, error in wrong_models(config).items():
        raise InvalidConfig(f"tenant {config.tenant_id}: {field}: {error.what}", error.remedy)


def wrong_models(config: RoutingConfigUnified) -> dict[str, LMNotConfigured]:
    """What is wrong with the names of language models, by the field that has each."""
    wrong = {}
    for field, lm in (("lm.model", config.lm), ("teacher_lm.model", config.teacher_lm)):
        if lm and lm.model != STAND_IN:
            try:
                check_model_name(lm.model, lm.api_base)
            except LMNotConfigured as e:
                wrong[field] = e
    return wrong
