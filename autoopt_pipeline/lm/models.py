"""From settings to a language model: any that DSPy speaks to, or the stand-in."""

from dataclasses import dataclass
from typing import Any, Literal

import dspy
from dspy.lm15 import Request, Response
from dspy.utils.exceptions import LMConfigurationError, LMError

from autoopt_pipeline.errors import LMNotConfigured
from autoopt_pipeline.lm.meter import Engine, Meter, MeteredEngine, Role
from autoopt_pipeline.lm.stand_in import StandInEngine
from autoopt_pipeline.settings import STAND_IN, Settings, read_secret
from autoopt_pipeline.tenants.config import LMSettings

_NATIVE_PROVIDERS = frozenset(
    {"openai", "anthropic", "azure", "gemini", "groq", "openrouter", "deepseek", "hosted_vllm", "ollama_chat"}
)
"""Providers that DSPy's own client speaks to. For the others DSPy uses LiteLLM, three times the CPU per call."""

_RETRIES = 3
"""Tries after a 429, a 5xx or a transport error, with DSPy's exponential waits."""

_MAX_TOKENS = {Role.ANSWERS: 512, Role.TEACHER: 4096}
"""Longest output where the settings do not say: an answer is a few short fields, an instruction a page."""


@dataclass(frozen=True)
class MeteredLM:
    """A language model whose every call is counted."""

    lm: dspy.LM
    meter: Meter
    name: str
    threads: int
    is_stand_in: bool


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


def metered_lm(settings: LMSettings, meter: Meter, role: Role = Role.ANSWERS) -> MeteredLM:
    """Make the language model. Raises `LMNotConfigured` when its key is missing."""
    if settings.model == STAND_IN:
        # The stand-in only computes, so threads would fight for the interpreter lock.
        return MeteredLM(
            _dspy_lm(f"{STAND_IN}/nearest-demo", MeteredEngine(StandInEngine(), STAND_IN, meter, role)),
            meter,
            STAND_IN,
            1,
            True,
        )
    key = _key(settings)
    try:
        endpoint = _EndpointEngine(settings, key, _MAX_TOKENS[role])
    except (LMError, ValueError) as e:
        raise LMNotConfigured(f"language model {settings.model}: {e}", "correct the model's settings") from None
    engine = MeteredEngine(endpoint, settings.model, meter, role, samples=bool(settings.temperature))
    return MeteredLM(_dspy_lm(settings.model, engine), meter, settings.model, settings.concurrency, False)


class _EndpointEngine:
    """A real model behind DSPy's own client, as an engine that can be wrapped."""

    def __init__(self, settings: LMSettings, key: str | None, max_tokens: int) -> None:
        provider = settings.model.partition("/")[0]
        native = provider in _NATIVE_PROVIDERS
        self._settings = settings
        self._connection: dict[str, Any] = {
            name: value for name, value in {"api_base": settings.api_base, "api_key": key}.items() if value
        }
        self._engine: Literal["lm15", "litellm"] = "lm15" if native else "litellm"
        try:
            self._lm = self._make(
                temperature=_or(settings.temperature, 0.0), max_tokens=_or(settings.max_tokens, max_tokens)
            )
        except LMConfigurationError:
            # Reasoning models take neither.
            self._lm = self._make(temperature=settings.temperature, max_tokens=settings.max_tokens)

    def _make(self, *, temperature: float | None, max_tokens: int | None) -> dspy.LM:
        return dspy.LM(
            self._settings.model,
            temperature=temperature,
            max_tokens=max_tokens,
            # The cache's key leaves out the endpoint: one tenant would get another's answers.
            cache=False,
            num_retries=_RETRIES,
            engine=self._engine,
            timeout=self._settings.timeout_seconds,
            **self._connection,
        )

    def complete(self, request: Request) -> Response:
        return self._lm(request)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


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
