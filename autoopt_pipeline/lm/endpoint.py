"""Client of a real language model: request settings, choice of the HTTP client, and retries."""

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
from autoopt_pipeline.lm.metering import note_pause
from autoopt_pipeline.model_names import check_provider
from autoopt_pipeline.secrets import scrub_error
from autoopt_pipeline.tenants.config import LMSettings

# Requests the same answer to the same request, from endpoints that support seeds.
SEED = 9

# Retries after a 429, a 5xx, a transport error or an unreadable response.
_RETRIES = 3

# In seconds. An endpoint that requests a longer pause (Retry-After) counts as out of service.
_LONGEST_WAIT = 300.0

# After this many 403 responses without an answer, the cause is the key and not the request.
_KEYS_CHECKED = 5

Name = Literal["temperature", "max_tokens", "seed"]

# Names of the settings in requests.
_WIRE_NAMES = ("max_completion_tokens", "max_tokens", "temperature", "random_seed", "seed")


class EndpointEngine:
    """One model at one endpoint, as a DSPy engine that threads can share.

    `default_max_tokens` limits answers if the settings do not. Raises `LMNotConfigured` for a setting that the model is
    known to reject.
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
        # No default limit for a reasoning model, because its thoughts count and their length is unknown.
        if (longest := settings.max_tokens or (None if reasons else default_max_tokens)) is not None:
            self._values["max_tokens"] = longest
        self._client = self._choose_client()
        # Servers with OpenAI's protocol know the older name, and so does LiteLLM; OpenAI itself requires the newer one.
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
        """Settings of requests: configured values and defaults, without those that the endpoint rejects."""
        return dict(self._values)

    def configure(self, request: Request) -> Request:
        """Return the request with all settings filled in, so that equal prompts are equal requests."""
        config = request.config
        open_settings = {name: value for name, value in self._values.items() if getattr(config, name) is None}
        return replace(request, config=replace(config, **open_settings)) if open_settings else request

    def complete(self, request: Request) -> Response:
        """Return the response.

        Raises `RequestRefused` if the endpoint rejects only this request, `LMNotConfigured` if it rejects a configured
        setting, and otherwise the client's last error.
        """
        request = self.configure(request)
        retries = 0
        while True:
            self._wait()
            revision = self._revision
            try:
                response = self._client(self._on_the_wire(request))
            except Exception as e:
                scrub_error(e)  # servers often quote the key that they reject
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
        """Return the request without settings that the endpoint rejected, and with its name for the answer's length."""
        config = request.config
        gone: dict[str, Any] = {
            name: None for name in ("temperature", "max_tokens", "seed") if name not in self._values
        }
        if self._max_tokens_field and config.max_tokens and "max_tokens" in self._values:
            gone["max_tokens"] = None
            gone["extensions"] = {**(config.extensions or {}), self._max_tokens_field: config.max_tokens}
        return replace(request, config=replace(config, **gone)) if gone else request

    def _adapted(self, e: Exception, revision: int) -> bool:
        """Return whether to send the request again, without a setting that the endpoint or client rejects.

        Only before the first answer; later the settings are known to be valid.
        """
        with self._lock:
            if self._revision != revision:
                return True  # another thread has adapted meanwhile
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
            # Two names of one setting: if one is rejected, the other is required.
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
        """Delay the next requests of all threads: as long as the endpoint asks, otherwise longer with every retry."""
        asked = retry_after(e)
        if asked is not None and asked > _LONGEST_WAIT:
            raise e
        if asked is not None:
            self._resume_at = max(self._resume_at, time.monotonic() + asked)
        else:
            _sleep(2**retries * random.uniform(0.75, 1.25))  # noqa: S311 - not a secret

    def _wait(self) -> None:
        while (seconds := self._resume_at - time.monotonic()) > 0:
            _sleep(seconds)

    def _choose_client(self) -> dspy.LM:
        """Return DSPy's own client if it supports the endpoint, else LiteLLM at three times the CPU per call."""
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
            # The cache's key lacks the endpoint, so one tenant would get another's answers.
            cache=False,
            num_retries=0,
            engine=engine,
            timeout=self._settings.timeout_seconds,
            **self._connection,
        )


def _is_reasoning_model(model: str) -> bool:
    """Return whether DSPy knows the name as an OpenAI reasoning model, which rejects a temperature of 0."""
    try:
        dspy.LM(model, temperature=0.5, max_tokens=16, cache=False)
    except LMConfigurationError:
        return True
    return False


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
    note_pause(seconds)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
