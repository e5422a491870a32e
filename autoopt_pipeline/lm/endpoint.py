"""A real language model: what every request to it carries, which client carries it, and how failures are met."""

import random
import threading
import time
from dataclasses import replace
from typing import Any, Literal

import dspy
from dspy.lm15 import Request, Response
from dspy.utils.exceptions import LMConfigurationError, LMError, LMUnsupportedFeatureError

from autoopt_pipeline.errors import LMNotConfigured
from autoopt_pipeline.lm.failures import may_pass, refused_request, refused_setting, retry_after
from autoopt_pipeline.model_names import check_provider
from autoopt_pipeline.secrets import scrub_error
from autoopt_pipeline.tenants.config import LMSettings

SEED = 9
"""Asks an endpoint that knows seeds to answer the same request the same way."""

_RETRIES = 3
"""Further tries after a 429, a 5xx, a transport error or a garbled answer."""

_LONGEST_WAIT = 300.0
"""Seconds. An endpoint that asks for a longer pause (Retry-After) is taken to be out of service."""

_KEYS_CHECKED = 5
"""Requests refused with 403 before any was answered: so many say that the key is refused, not what was asked."""

Name = Literal["temperature", "max_tokens", "seed"]

_WIRE_NAMES = ("max_completion_tokens", "max_tokens", "temperature", "random_seed", "seed")
"""What endpoints call them."""


class EndpointEngine:
    """One model at one endpoint, as a DSPy engine that threads may share.

    `default_max_tokens` is the longest answer where the settings do not say. Raises `LMNotConfigured` when a setting
    is one that the model is known not to take.
    """

    def __init__(self, settings: LMSettings, key: str | None, default_max_tokens: int) -> None:
        self._settings = settings
        self._connection: dict[str, Any] = {
            name: value for name, value in {"api_base": settings.api_base, "api_key": key}.items() if value
        }
        reasons = _is_reasoning_model(settings.model)
        if reasons and settings.temperature not in {None, 1.0}:
            raise LMNotConfigured(
                f"language model {settings.model}: a reasoning model takes no temperature", "unset lm.temperature"
            )
        self._values: dict[Name, Any] = {"seed": SEED}
        if not reasons:
            self._values["temperature"] = _or(settings.temperature, 0.0)
        # What a reasoning model thinks counts as its answer, and nobody knows how much that is.
        if (longest := settings.max_tokens or (None if reasons else default_max_tokens)) is not None:
            self._values["max_tokens"] = longest
        self._client = self._choose_client()
        # Servers that speak OpenAI's protocol know its older name, and so does LiteLLM; OpenAI itself wants the newer.
        own_server = settings.model.startswith("openai/") and settings.api_base is not None
        older_name = (own_server or self._client.engine == "litellm") and not reasons
        self._max_tokens_field = "max_tokens" if older_name else None
        self._revision = 0
        self._answered = False
        self._forbidden = 0
        self._resume_at = 0.0
        self._lock = threading.Lock()

    @property
    def values(self) -> dict[Name, Any]:
        """The settings that requests carry: what was chosen or is usual, less what the endpoint does not take."""
        return dict(self._values)

    def configure(self, request: Request) -> Request:
        """The request with the settings that it leaves open, so that an equal question is an equal request."""
        config = request.config
        open_settings = {name: value for name, value in self._values.items() if getattr(config, name) is None}
        return replace(request, config=replace(config, **open_settings)) if open_settings else request

    def complete(self, request: Request) -> Response:
        """Answer. Raises `RequestRefused` where the endpoint refuses this one request, `LMNotConfigured` where it
        does not take a setting that somebody chose, and otherwise what the client raised last."""
        request = self.configure(request)
        retries = 0
        while True:
            self._wait()
            revision = self._revision
            try:
                response = self._client(self._on_the_wire(request))
            except Exception as e:
                scrub_error(e)  # servers like to quote the key that they refuse
                if self._adapted(e, revision):
                    continue
                if refused := refused_request(e, answered=self._answered or self._may_be_filter(e)):
                    raise refused from None
                if not may_pass(e) or retries == _RETRIES:
                    raise
                self._pause(e, retries)
                retries += 1
            else:
                self._answered = True
                return response

    def _on_the_wire(self, request: Request) -> Request:
        """The request as this endpoint takes it: without settings that it refused, and with its name for the length."""
        config = request.config
        gone: dict[str, Any] = {
            name: None for name in ("temperature", "max_tokens", "seed") if name not in self._values
        }
        if self._max_tokens_field and config.max_tokens and "max_tokens" in self._values:
            gone["max_tokens"] = None
            gone["extensions"] = {**(config.extensions or {}), self._max_tokens_field: config.max_tokens}
        return replace(request, config=replace(config, **gone)) if gone else request

    def _adapted(self, e: Exception, revision: int) -> bool:
        """Whether the request is worth sending again, without what the endpoint or the client does not take.

        Only before the first answer: afterwards the settings are known to be taken.
        """
        with self._lock:
            if self._revision != revision:
                return True  # another thread adapted meanwhile
            if self._answered:
                return False
            if name := refused_setting(e, _WIRE_NAMES):
                self._drop(name, e)
            elif self._client.engine == "lm15" and isinstance(e, LMUnsupportedFeatureError | LMConfigurationError):
                self._client = self._make("litellm")
            else:
                return False
            self._revision += 1
            return True

    def _drop(self, refused: str, e: Exception) -> None:
        if refused.endswith("tokens"):
            # The two names of one setting: where one is refused, the other is what is wanted.
            other = "max_tokens" if refused == "max_completion_tokens" else "max_completion_tokens"
            if self._max_tokens_field != other:
                self._max_tokens_field = other
                return
        name: Name = "max_tokens" if refused.endswith("tokens") else "seed" if "seed" in refused else "temperature"
        chosen = getattr(self._settings, name, None)
        if chosen is not None or name not in self._values:
            raise LMNotConfigured(
                f"language model {self._settings.model}: {name}={chosen} is refused: {str(e)[:200]}",
                f"unset lm.{name}, or choose another value",
            ) from None
        del self._values[name]

    def _may_be_filter(self, e: Exception) -> bool:
        if getattr(e, "status", None) != 403:
            return False
        with self._lock:
            self._forbidden += 1
            return self._forbidden < _KEYS_CHECKED

    def _pause(self, e: Exception, retries: int) -> None:
        """Have the next tries of all threads wait: as long as the endpoint says, else longer with every try."""
        asked = retry_after(e)
        if asked is not None and asked > _LONGEST_WAIT:
            raise e
        if asked is not None:
            self._resume_at = max(self._resume_at, time.monotonic() + asked)
        else:
            time.sleep(2**retries * random.uniform(0.75, 1.25))  # noqa: S311 - no secret

    def _wait(self) -> None:
        while (seconds := self._resume_at - time.monotonic()) > 0:
            time.sleep(seconds)

    def _choose_client(self) -> dspy.LM:
        """DSPy's own client where it speaks to the endpoint; else LiteLLM, at three times the CPU per call."""
        client = self._make("lm15")
        try:
            _ = client.supported_params
        except LMError:
            check_provider(self._settings.model, self._settings.api_base)
            client = self._make("litellm")
        return client

    def _make(self, engine: Literal["lm15", "litellm"]) -> dspy.LM:
        return dspy.LM(
            self._settings.model,
            # The cache's key leaves out the endpoint: one tenant would get another's answers.
            cache=False,
            num_retries=0,
            engine=engine,
            timeout=self._settings.timeout_seconds,
            **self._connection,
        )


def _is_reasoning_model(model: str) -> bool:
    """Whether DSPy knows the name as one of OpenAI's reasoning models, which refuse a temperature of 0."""
    try:
        dspy.LM(model, temperature=0.5, max_tokens=16, cache=False)
    except LMConfigurationError:
        return True
    return False


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
