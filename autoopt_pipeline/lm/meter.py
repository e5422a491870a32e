"""Counting and bounding what a run spends on its language models."""

import hashlib
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from dspy.lm15 import Request, Response
from dspy.utils.exceptions import LMInvalidRequestError, LMUnsupportedModelError

from autoopt_pipeline.secrets import scrub, scrub_error


class BudgetExhausted(BaseException):
    """The budget is spent. A BaseException, because DSPy's optimizers take an Exception for a wrong answer."""


class Outage(BaseException):
    """An endpoint failed even after retries. A BaseException for the same reason, so that nothing goes on asking."""


class Role(StrEnum):
    """What a model is asked for: answers of programs, or help in making programs."""

    ANSWERS = "answers"
    TEACHER = "teacher"


class Engine(Protocol):
    def complete(self, request: Request) -> Response: ...


@dataclass
class Meter:
    """Calls and tokens so far, calls also by role, and their limits. Safe to share between threads.

    DSPy's own `track_usage` loses what threads did, so counting happens here, where every call passes. One meter
    counts all models of a run, so that one budget bounds them.
    """

    max_calls: int
    max_tokens: int
    calls: int = 0
    tokens: int = 0
    calls_by_role: Counter[Role] = field(default_factory=Counter)
    refused_calls: int = 0
    last_refusal: str = ""
    _outage: str = ""
    _largest_answer: int = 0
    _held_back: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def calls_left(self) -> int:
        """Calls that may still be made, without those held back."""
        return max(0, self.max_calls - self._held_back - self.calls)

    def admit(self, role: Role) -> None:
        """Count one call, or raise `BudgetExhausted`. Refuses again and again once the budget is spent.

        After an outage it raises `Outage`: what threads still have in their queue would wait for its retries.
        """
        with self._lock:
            if self._outage:
                raise Outage(self._outage)
            held_tokens = self._held_back * self._largest_answer
            if self.calls >= self.max_calls - self._held_back or self.tokens >= self.max_tokens - held_tokens:
                raise BudgetExhausted(f"{self.calls} calls and {self.tokens} tokens are spent")
            self.calls += 1
            self.calls_by_role[role] += 1

    def add_tokens(self, role: Role, tokens: int) -> None:
        with self._lock:
            self.tokens += tokens
            if role is Role.ANSWERS:
                self._largest_answer = max(self._largest_answer, tokens)

    def add_refusal(self, message: str) -> None:
        """The model will not answer this request: it is too long, or against its rules."""
        with self._lock:
            self.refused_calls += 1
            self.last_refusal = message

    def add_outage(self, message: str) -> Outage:
        """The endpoint failed, even after retries: nothing is known of the answer."""
        with self._lock:
            self._outage = message
        return Outage(message)

    @contextmanager
    def holding_back(self, calls: int) -> Generator[None, None, None]:
        """Keep `calls` of the budget for what comes after, with tokens for the largest answer so far each."""
        self._held_back += calls
        try:
            yield
        finally:
            self._held_back -= calls


class MeteredEngine:
    """Passes requests on to another engine and counts them.

    The same request is asked once: a search evaluates the same program on the same examples more than once, and
    of a program of several predictors mostly one is changed at a time. What is asked at a temperature, the request's
    or the model's own (`samples`), is asked anew, because then another answer is wanted.
    """

    def __init__(self, engine: Engine, name: str, meter: Meter, role: Role, samples: bool = False) -> None:
        self._engine = engine
        self._name = name
        self._meter = meter
        self._role = role
        self._samples = samples
        self._answers: dict[bytes, Response] = {}

    def complete(self, request: Request) -> Response:
        """Answer, or raise `BudgetExhausted`, `Outage`, or the engine's own error where it refuses the request."""
        if self._samples or request.config.temperature:
            return self._ask(request)
        key = hashlib.sha256(repr(request).encode()).digest()
        if key not in self._answers:
            self._answers[key] = self._ask(request)
        return self._answers[key]

    def _ask(self, request: Request) -> Response:
        self._meter.admit(self._role)
        try:
            response = self._engine.complete(request)
        except Exception as e:
            said = scrub(str(e))  # servers quote the key that they refuse, and this ends in notes and reports
            message = f"{type(e).__name__}: {said}"
            if isinstance(e, LMInvalidRequestError) and not isinstance(e, LMUnsupportedModelError):
                self._meter.add_refusal(message)
                scrub_error(e)
                raise e from None
            raise self._meter.add_outage(f"{self._name}: {message[:200]}") from None
        self._meter.add_tokens(self._role, (response.usage.total_tokens or 0) if response.usage else 0)
        return response
