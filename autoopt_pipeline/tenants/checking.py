"""What a configuration names that has to be there beside it: modules, and language models. Checked when it is written.

A configuration that is read may name a module whose package is gone: that is then an error of that module alone, and
what was stored before is in the way of no other change.
"""

from typing import Any

from autoopt_pipeline.errors import InvalidConfig, LMNotConfigured
from autoopt_pipeline.model_names import check_model_name
from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenants.config import RoutingConfigUnified, check_modules


def check_names(config: RoutingConfigUnified, before: Any = None) -> None:
    """Raise `InvalidConfig` where the configuration names a module that is not installed, or a language model that no
    client here can speak to, and the document that was stored `before` did not."""
    check_modules(config, before)
    for field, error in wrong_models(config, before).items():
        raise InvalidConfig(f"tenant {config.tenant_id}: {field}: {error.what}", error.remedy)


def wrong_models(config: RoutingConfigUnified, before: Any = None) -> dict[str, LMNotConfigured]:
    """What is wrong with the names of language models that were not stored `before`, by the field that has each."""
    wrong = {}
    stored = before if isinstance(before, dict) else {}
    for name, lm in (("lm", config.lm), ("teacher_lm", config.teacher_lm)):
        was = stored.get(name)
        if lm and lm.model != STAND_IN and lm.model != (was.get("model") if isinstance(was, dict) else None):
            try:
                check_model_name(lm.model, lm.api_base)
            except LMNotConfigured as e:
                wrong[f"{name}.model"] = e
    return wrong
