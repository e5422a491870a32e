"""Counts and limits a run's language model calls and tokens."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from dspy.lm15 import Request, Response

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.lm.failures import RequestRefused, as_error
from autoopt_pipeline.lm.prices import CallCost, call_cost
from autoopt_pipeline.registry.program_cost import dollars_text
from autoopt_pipeline.tenants.config import LMPrice


class BudgetExhausted(BaseException):
    """The budget is spent. A BaseException, because DSPy's optimizers count an Exception as a wrong answer."""


class Outage(BaseException):
    """No request can be answered; `error` has the reason. A BaseException as above, so that nothing continues."""

    def __init__(self, error: AutooptError) -> None:
        self.error = error
        super().__init__(str(error))


class Role(StrEnum):
    """Purpose of a call: a program's answer, help in making programs, or a judge's opinion."""

    ANSWERS = "answers"
    TEACHER = "teacher"
    JUDGE = "judge"


class Engine(Protocol):
    def complete(self, request: Request) -> Response: ...


@dataclass
class Meter:
    """Calls and tokens so far, calls also by role, and their limits. Threads can share it.

    DSPy's `track_usage` loses the usage of threads, so it is counted here, where every call passes. One meter counts
    all models of a run, so that one budget limits them. `cached_tokens` is the part of `input_tokens` from a provider's
    prompt cache. `dollars` is None if the price of a call is unknown, and `known_dollars` is the sum of the others.
    `outages` has the reason of each model, by name, that cannot answer any request.
    """

    max_calls: int
    max_tokens: int
    max_dollars: float | None = None
    calls: int = 0
    tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    dollars: float | None = 0.0
    known_dollars: float = 0.0
    calls_by_role: Counter[Role] = field(default_factory=Counter)
    outages: dict[str, AutooptError] = field(default_factory=dict)
    _largest_answer: int = 0
    _dearest_answer: float = 0.0
    _held_back: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def calls_left(self) -> int:
        """Calls that are left, without those held back."""
        return max(0, self.max_calls - self._held_back - self.calls)

    def admit(self, role: Role) -> None:
        """Count one call, or raise `BudgetExhausted` if the budget is spent."""
        with self._lock:
            held_tokens, held_dollars = self._held_back * self._largest_answer, self._held_back * self._dearest_answer
            if self.calls >= self.max_calls - self._held_back or self.tokens >= self.max_tokens - held_tokens:
                raise BudgetExhausted(f"{self.calls} calls and {self.tokens} tokens are spent")
            if self.max_dollars is not None and self.known_dollars >= self.max_dollars - held_dollars:
                rest = ", and the rest is held back for the comparison" if self._held_back else ""
                raise BudgetExhausted(f"{dollars_text(self.known_dollars)} of ${self.max_dollars:g} are spent{rest}")
            self.calls += 1
            self.calls_by_role[role] += 1

    def add_cost(self, role: Role, cost: CallCost | None) -> None:
        """Add the tokens and dollars of an answer. One of unknown cost makes the run's dollars unknown."""
        dollars = cost.dollars if cost else None
        with self._lock:
            self.dollars = None if self.dollars is None or dollars is None else self.dollars + dollars
            if cost is None:
                return
            tokens = cost.input_tokens + cost.output_tokens
            self.tokens += tokens
            self.input_tokens += cost.input_tokens
            self.output_tokens += cost.output_tokens
            self.cached_tokens += cost.cached_tokens
            self.known_dollars += dollars or 0.0
            if role is Role.ANSWERS:
                self._largest_answer = max(self._largest_answer, tokens)
                self._dearest_answer = max(self._dearest_answer, dollars or 0.0)

    def add_outage(self, model: str, error: AutooptError) -> Outage:
        """Record that a model can answer no request, so the missing answers are unknown."""
        with self._lock:
            self.outages.setdefault(model, error)
        return Outage(error)

    @contextmanager
    def holding_back(self, calls: int) -> Generator[None, None, None]:
        """Reserve `calls` of the budget for later, each with the tokens and dollars of the largest answer so far."""
        self._held_back += calls
        try:
            yield
        finally:
            self._held_back -= calls


@dataclass
class Heard:
    """The model's answers to some calls, in order, including cached ones.

    `costs` has what each call costs, also those whose answers are cached; None is unknown. `paused` is how many seconds
    the requests were held back, and `recalled` how many the calls took whose answers are cached, None if unknown.
    """

    responses: list[Response] = field(default_factory=list)
    costs: list[CallCost | None] = field(default_factory=list)
    paused: float = 0.0
    recalled: float | None = 0.0


_listeners: ContextVar[tuple[Heard, ...]] = ContextVar("_listeners", default=())


def note_pause(seconds: float) -> None:
    """Note that we held a request back, as an endpoint asks, so that it does not count as the program's time."""
    for heard in _listeners.get():
        heard.paused += seconds


@contextmanager
def listening() -> Generator[Heard, None, None]:
    """Collect the model's answers to calls in the body (this thread or task)."""
    heard = Heard()
    token = _listeners.set((*_listeners.get(), heard))
    try:
        yield heard
    finally:
        _listeners.reset(token)


def answer_text(response: Response) -> str:
    """Return an answer's text. DSPy's client returns an answer to a schema as data."""
    parts = [
        json.dumps(part.value) if part.type == "data" else getattr(part, "text", "") for part in response.message.parts
    ]
    return response.text or "".join(parts)


@dataclass(frozen=True)
class TimedAnswer:
    """An answer, and how many seconds its call took, None if unknown."""

    response: Response
    seconds: float | None


class Answers(Protocol):
    """A cache of answers, keyed by a digest of the request and the model."""

    def get(self, key: bytes) -> "TimedAnswer | None": ...

    def put(self, key: bytes, answer: "TimedAnswer") -> None: ...


class InMemory:
    """A cache of answers for the life of the process."""

    def __init__(self) -> None:
        self._answers: dict[bytes, TimedAnswer] = {}

    def get(self, key: bytes) -> TimedAnswer | None:
        return self._answers.get(key)

    def put(self, key: bytes, answer: TimedAnswer) -> None:
        self._answers[key] = answer


class MeteredEngine:
    """Counts and caches the requests to another engine. `configure` fills in settings that a request lacks.

    Equal requests are sent once, because a search evaluates the same program on the same examples repeatedly, and
    mostly changes one of several predictors at a time. Requests with a temperature want different answers: each is
    sent, with a new seed, so that a run can be repeated. `answers` is the cache; `asked_at` distinguishes endpoints of
    models with the same name in it.
    """

    def __init__(  # noqa: PLR0913 - the parts of one model
        self,
        engine: Engine,
        name: str,
        meter: Meter,
        role: Role,
        configure: Callable[[Request], Request] = lambda request: request,
        answers: Answers | None = None,
        asked_at: str = "",
        price: LMPrice | None = None,
    ) -> None:
        self._engine = engine
        self._name = name
        self._meter = meter
        self._role = role
        self._price = price
        self._configure = configure
        self._answers: Answers = answers or InMemory()
        self._who = f"{name}\0{asked_at}\0".encode()
        self._sampled: Counter[bytes] = Counter()

    def complete(self, request: Request) -> Response:
        """Return the response. Raises `BudgetExhausted`, `Outage`, or `RequestRefused` for this request only."""
        request = self._configure(request)
        key = self._key(request)
        if request.config.temperature:
            self._sampled[key] += 1
            request = _seeded(request, key, self._sampled[key])
            key = self._key(request)
        kept = self._answers.get(key)
        answer = kept or self._ask(request)
        if kept is None:
            self._answers.put(key, answer)
        for heard in _listeners.get():
            heard.responses.append(answer.response)
            heard.costs.append(call_cost(answer.response, self._price))
            if kept is not None:
                known = heard.recalled is not None and kept.seconds is not None
                heard.recalled = heard.recalled + kept.seconds if known else None
        return answer.response

    def _key(self, request: Request) -> bytes:
        return hashlib.sha256(self._who + repr(request).encode()).digest()

    def _ask(self, request: Request) -> TimedAnswer:
        # After an outage, queued calls of other threads would wait for their retries.
        if self._name in self._meter.outages:
            raise Outage(self._meter.outages[self._name])
        self._meter.admit(self._role)
        began = time.perf_counter()
        try:
            with listening() as pauses:
                response = self._engine.complete(request)
        except RequestRefused:
            raise
        except Exception as e:  # noqa: BLE001 - the client and its packages may raise anything
            # Its cause may quote the key.
            raise self._meter.add_outage(self._name, as_error(self._name, e)) from None
        self._meter.add_cost(self._role, call_cost(response, self._price))
        return TimedAnswer(response, max(0.0, time.perf_counter() - began - pauses.paused))


def _seeded(request: Request, key: bytes, times: int) -> Request:
    digest = hashlib.sha256(key + times.to_bytes(4)).digest()
    return replace(request, config=replace(request.config, seed=int.from_bytes(digest[:4]) >> 1))
