"""Checks on writing that the modules and language models that a configuration names exist.

A stored configuration may name a module whose package is gone. That is an error of this module alone, and a name that
was stored before does not block other changes.
"""

from typing import Any

from autoopt_pipeline.errors import InvalidConfig, LMNotConfigured
from autoopt_pipeline.model_names import check_model_name
from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenants.config import RoutingConfigUnified, check_modules


def check_names(config: RoutingConfigUnified, before: Any = None) -> None:
    """Check that every module is installed and every language model has a client here.

    Names that the document `before` already has are not checked. Raises `InvalidConfig`.
    """
    check_modules(config, before)
    for field, error in wrong_models(config, before).items():
        raise InvalidConfig(f"tenant {config.tenant_id}: {field}: {error.what}", error.remedy)


def wrong_models(config: RoutingConfigUnified, before: Any = None) -> dict[str, LMNotConfigured]:
    """Errors in the names of language models, by field, except names that the document `before` already has."""
    errors = {}
    stored = before if isinstance(before, dict) else {}
    judge = stored.get("judge")
    candidates = stored.get("candidate_lms")
    listed = candidates if isinstance(candidates, list) else []
    for name, lm, old in (
        ("lm", config.lm, [stored.get("lm")]),
        ("teacher_lm", config.teacher_lm, [stored.get("teacher_lm")]),
        ("judge.lm", config.judge.lm if config.judge else None, [judge.get("lm") if isinstance(judge, dict) else None]),
        *((f"candidate_lms.{place}", lm, listed) for place, lm in enumerate(config.candidate_lms)),
    ):
        known = [settings.get("model") for settings in old if isinstance(settings, dict)]
        if lm and lm.model != STAND_IN and lm.model not in known:
            try:
                check_model_name(lm.model, lm.api_base)
            except LMNotConfigured as e:
                errors[f"{name}.model"] = e
    return errors
