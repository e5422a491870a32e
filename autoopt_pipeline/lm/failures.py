"""Classifies failed calls: does the error concern this request, a setting, or all requests?"""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMConfigurationError,
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMTimeoutError,
    LMUnexpectedError,
    LMUnsupportedFeatureError,
    LMUnsupportedModelError,
    is_retryable_lm_error,
)

from autoopt_pipeline.errors import AutooptError, LMNotConfigured, LMUnavailable
from autoopt_pipeline.text import one_line

_TOO_LONG = re.compile(r"context (size|length|window)|context_length|maximum context|prompt is too long", re.IGNORECASE)
_UNSUPPORTED = re.compile(
    r"(un|not |n't )support|unknown|unrecogni[sz]ed|not permitted|not allowed|extra|deprecated|invalid", re.IGNORECASE
)
_SHOWN = 300


class RequestRefused(LMInvalidRequestError):
    """The endpoint rejects this request because of its contents or length, but answers others.

    An `LMError`, so that DSPy passes it on unchanged and its optimizers count it as a wrong answer.
    """

    def __init__(self, message: str, *, status: int | None = None, too_long: bool = False) -> None:
        self.too_long = too_long
        super().__init__(message, status=status)


def may_pass(e: Exception) -> bool:
    """Return whether a retry may succeed: after a 429, a 5xx, a lost connection or an unreadable response."""
    garbled = isinstance(e, LMUnexpectedError) or (type(e) is LMProviderError and e.status in {None, 200})
    return is_retryable_lm_error(e) or garbled


def retry_after(e: BaseException) -> float | None:
    """Return the seconds that the endpoint asks to wait, or None. LiteLLM leaves the header on its exception."""
    if isinstance(seconds := getattr(e, "retry_after", None), int | float):
        return float(seconds)
    headers = getattr(e, "litellm_response_headers", None) or {}
    if header := headers.get("retry-after"):
        return _seconds(header)
    cause = e.__cause__ or e.__context__
    return retry_after(cause) if cause else None


def _seconds(header: str) -> float | None:
    """Parse a Retry-After header: a number of seconds, or a date."""
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    return None


def refused_request(e: Exception, *, answered: bool) -> RequestRefused | None:
    """Return the refusal if an error concerns only this request. `answered` is whether others were answered before.

    A 403 comes from a content filter if the same key worked before; otherwise the key is rejected.
    """
    status = getattr(e, "status", None)
    message = one_line(str(e))[:_SHOWN]
    if isinstance(e, ContextWindowExceededError) or status == 413 or (status == 400 and _TOO_LONG.search(message)):
        return RequestRefused(f"the request is too long for the model: {message}", status=status, too_long=True)
    if isinstance(e, LMInvalidRequestError) and not _names_nothing(e):
        return RequestRefused(message, status=status)
    return RequestRefused(message, status=status) if status == 403 and answered else None


def refused_setting(e: Exception, names: Sequence[str]) -> str | None:
    """Return the setting in `names` that an error is about, if any. The client reports it, or a 400 or 422 does."""
    by_client = isinstance(e, LMUnsupportedFeatureError | LMConfigurationError)
    if not by_client and not (isinstance(e, LMInvalidRequestError) and getattr(e, "status", None) in {400, 422}):
        return None
    message = str(e)
    if not _UNSUPPORTED.search(message):
        return None
    # The first one named: "'max_tokens' is not supported, use 'max_completion_tokens' instead".
    match = re.search(rf"(?<![a-z_])({'|'.join(names)})(?![a-z_])", message)
    return match[1] if match else None


def as_error(name: str, e: Exception) -> AutooptError:
    """Return an error for people for a failure that concerns all requests to the model `name`."""
    if isinstance(e, AutooptError):
        return e
    problem = f"language model {name}: {type(e).__name__}: {one_line(str(e))[:_SHOWN]}"
    if isinstance(e, LMAuthError):
        return LMNotConfigured(problem, "check the key: the variable that lm.api_key_env names holds it")
    if _names_nothing(e):
        return LMNotConfigured(problem, "correct the model's name, or lm.api_base")
    if isinstance(e, LMUnsupportedFeatureError | LMConfigurationError | TypeError | ValueError):
        return LMNotConfigured(problem, "correct the model's settings")
    return LMUnavailable(problem, _remedy(e))


def _names_nothing(e: Exception) -> bool:
    """Return whether the model does not exist, or nothing is at that address."""
    return isinstance(e, LMUnsupportedModelError) or getattr(e, "status", None) in {404, 405}


def _remedy(e: Exception) -> str:
    if isinstance(e, LMBillingError):
        return "see to the account's credit; the next attempt starts anew"
    if isinstance(e, LMRateLimitError):
        return "lower lm.concurrency, or have the endpoint's limit raised; the next attempt starts anew"
    if isinstance(e, LMTimeoutError):
        return "raise lm.timeout_seconds, or lower lm.concurrency; the next attempt starts anew"
    return "check the endpoint (lm.api_base) and that it is up; the next attempt starts anew"
