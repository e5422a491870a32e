"""Counting and bounding what a run spends on its language model."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from dspy.lm15 import Request, Response
from dspy.utils.exceptions import LMInvalidRequestError, LMUnsupportedModelError


class BudgetExhausted(BaseException):
    """The budget is spent. A BaseException, because DSPy's optimizers take an Exception for a wrong answer."""


class Engine(Protocol):
    def complete(self, request: Request) -> Response: ...


@dataclass
class Meter:
    """Calls and tokens so far, and their limits. Safe to share between threads.

    DSPy's own `track_usage` loses what threads did, so counting happens here, where every call passes.
    """

    max_calls: int
    max_tokens: int
    calls: int = 0
    tokens: int = 0
    refused_calls: int = 0
    failed_calls: int = 0
    last_failure: str = ""
    _largest_call: int = 0
    _held_back: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def admit(self) -> None:
        """Count one call, or raise `BudgetExhausted`. Refuses again and again once the budget is spent."""
        with self._lock:
            held_tokens = self._held_back * self._largest_call
            if self.calls >= self.max_calls - self._held_back or self.tokens >= self.max_tokens - held_tokens:
                raise BudgetExhausted(f"{self.calls} calls and {self.tokens} tokens are spent")
            self.calls += 1

    def add_tokens(self, tokens: int) -> None:
        with self._lock:
            self.tokens += tokens
            self._largest_call = max(self._largest_call, tokens)

    def add_refusal(self, message: str) -> None:
        """The model will not answer this request: it is too long, or against its rules."""
        with self._lock:
            self.refused_calls += 1
            self.last_failure = message

    def add_failure(self, message: str) -> None:
        """The endpoint failed, even after retries: nothing is known of the answer."""
        with self._lock:
            self.failed_calls += 1
            self.last_failure = message

    @contextmanager
    def holding_back(self, calls: int) -> Generator[None, None, None]:
        """Keep `calls` of the budget for what comes after, with tokens for the largest call so far each."""
        self._held_back += calls
        try:
            yield
        finally:
            self._held_back -= calls


class MeteredEngine:
    """Passes requests on to another engine and counts them."""

    def __init__(self, engine: Engine, meter: Meter, secret: str | None = None) -> None:
        self._engine = engine
        self._meter = meter
        self._secret = secret

    def complete(self, request: Request) -> Response:
        self._meter.admit()
        try:
            response = self._engine.complete(request)
        except Exception as e:
            message = f"{type(e).__name__}: {e}"
            if self._secret:
                message = message.replace(self._secret, "***")  # servers like to quote the key that they refuse
            of_this_request = isinstance(e, LMInvalidRequestError) and not isinstance(e, LMUnsupportedModelError)
            (self._meter.add_refusal if of_this_request else self._meter.add_failure)(message)
            raise
        self._meter.add_tokens((response.usage.total_tokens or 0) if response.usage else 0)
        return response
