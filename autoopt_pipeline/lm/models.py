"""From settings to a language model: any that DSPy speaks to, or the stand-in."""

from dataclasses import dataclass
from typing import Any

import dspy
from dspy.utils.exceptions import LMError
from pydantic import ValidationError

from autoopt_pipeline.errors import InvalidConfig, LMNotConfigured
from autoopt_pipeline.lm.endpoint import EndpointEngine
from autoopt_pipeline.lm.failures import as_error
from autoopt_pipeline.lm.metering import Answers, Engine, Meter, MeteredEngine, Role
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.modules.answer_format import CHAT
from autoopt_pipeline.settings import STAND_IN, Settings, read_secret
from autoopt_pipeline.tenants.config import AnswerFormatChoice, LMSettings
from autoopt_pipeline.validation import first_error

_MAX_TOKENS = {Role.ANSWERS: 512, Role.TEACHER: 4096}
"""Longest output where the settings do not say: an answer is a few short fields, an instruction a page."""


@dataclass(frozen=True)
class MeteredLM:
    """A language model whose every call is counted. The stand-in has no `endpoint`."""

    lm: dspy.LM
    meter: Meter
    name: str
    threads: int
    is_stand_in: bool
    answer_format: AnswerFormatChoice = CHAT
    endpoint: EndpointEngine | None = None


def resolve_lm(configured: LMSettings | None, settings: Settings) -> LMSettings:
    """A tenant's language model, or the deployment's. Raises `LMNotConfigured` when there is neither.

    Only where nothing is configured for production does the stand-in serve by default.
    """
    if configured:
        return configured
    if settings.lm:
        return LMSettings(model=settings.lm, api_base=settings.lm_api_base, api_key_env=settings.lm_api_key_env)
    if settings.embedded:
        return LMSettings(model=STAND_IN)
    raise LMNotConfigured(
        "no language model is configured",
        f"set AUTOOPT_LM (e.g. openai/gpt-4o-mini, or {STAND_IN} to try things offline), or 'lm' of the tenant",
    )


def resolve_teacher(configured: LMSettings | None, settings: Settings, answering: LMSettings) -> LMSettings:
    """The model that writes instructions and demos: a tenant's, or the deployment's, or the one that answers."""
    if configured:
        return configured
    if settings.teacher_lm:
        return LMSettings(
            model=settings.teacher_lm,
            api_base=settings.teacher_lm_api_base,
            api_key_env=settings.teacher_lm_api_key_env,
        )
    return answering


def metered_lm(
    settings: LMSettings, meter: Meter, role: Role = Role.ANSWERS, answers: Answers | None = None
) -> MeteredLM:
    """Make the language model. What it answers is remembered in `answers`, by default as long as it lives.

    Raises `LMNotConfigured` when its key is missing, or a setting cannot be used.
    """
    if settings.model == STAND_IN:
        stand_in = MeteredEngine(StandInEngine(), STAND_IN, meter, role)
        # The stand-in only computes, so threads would fight for the interpreter lock.
        return MeteredLM(_dspy_lm(f"{STAND_IN}/nearest-demo", stand_in), meter, STAND_IN, threads=1, is_stand_in=True)
    endpoint = _endpoint(settings, role)
    engine = MeteredEngine(endpoint, settings.model, meter, role, endpoint.configure, answers, settings.api_base or "")
    return MeteredLM(
        _dspy_lm(settings.model, engine),
        meter,
        settings.model,
        settings.concurrency,
        is_stand_in=False,
        answer_format=settings.answer_format,
        endpoint=endpoint,
    )


def plain_lm(**fields: Any) -> dspy.LM:
    """A model that nothing counts, asked as runs ask it; `fields` are those of `LMSettings`.

    Raises `InvalidConfig` for a field that is wrong, and `LMNotConfigured` as `metered_lm`.
    """
    try:
        settings = LMSettings(**fields)
    except ValidationError as e:
        raise InvalidConfig(f"language model {fields.get('model')}: {first_error(e)}", "correct it") from None
    return _dspy_lm(settings.model, _endpoint(settings, Role.ANSWERS))


def _endpoint(settings: LMSettings, role: Role) -> EndpointEngine:
    key = _key(settings)
    try:
        return EndpointEngine(settings, key, _MAX_TOKENS[role])
    except (LMError, ValueError) as e:
        raise as_error(settings.model, e) from None


def _dspy_lm(model: str, engine: Engine) -> dspy.LM:
    return dspy.LM(model, engine=engine, cache=False, num_retries=0)


def _key(settings: LMSettings) -> str | None:
    if settings.api_key_env:
        key = read_secret(settings.api_key_env)
        if not key:
            raise LMNotConfigured(
                f"language model {settings.model}: environment variable {settings.api_key_env} is not set",
                "set it to the key, where runs are executed",
            )
        return key
    # Servers of one's own often want no key, but the client insists on one.
    return "none" if settings.api_base else None
