"""Feedback on decisions as Phoenix annotations, held in memory until Phoenix has the span and sent by one thread.

A batch mixes feedback of all tenants, so an invalid piece must not cost another, and no message quotes one.
"""

import atexit
import encodings.idna  # noqa: F401 - otherwise imported by the first connection, see `begin`
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from numbers import Real
from typing import Any, get_args

import httpx

from autoopt_pipeline.errors import AutooptError, InvalidRequest, PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.modules.coercion import number, stripped
from autoopt_pipeline.secrets import scrub_logs_of
from autoopt_pipeline.serving._answers import Problem
from autoopt_pipeline.serving._fork import begin_in_every_process
from autoopt_pipeline.span_contract import CORRECTION, RANDOM_SAMPLING, AnnotatorKind, NewAnnotation
from autoopt_pipeline.urls import without_login, without_secrets

logger = logging.getLogger(__name__)
scrub_logs_of(__name__)

# Pieces of feedback that may wait. Further ones are dropped and reported.
CAPACITY = 1000

# How long a span may take to arrive. Phoenix stores about 130 a second; one that a sampler dropped never arrives.
GIVE_UP_SECONDS = 900

# Maximum length of an annotator's name. It is part of a database key, which databases limit.
MAX_NAME_CHARS = 200

MAX_CORRECTION_CHARS = 4000

_BATCH = 100
# Server errors after which a piece is sent alone, because it may be the cause.
_ALONE_AFTER = 3

_TIMEOUT_SECONDS = 10
# First and longest wait before a retry. The wait doubles each time.
_RETRY_SECONDS = (0.5, 30)

_FLUSH_AT_EXIT_SECONDS = 5


@dataclass(frozen=True)
class FeedbackRequest:
    """An application's feedback on a decision.

    Raises `InvalidRequest` if it is empty or cannot be stored. No message quotes its text.
    """

    correct: bool | None
    correction: str | None
    score: float | None
    kind: AnnotatorKind
    by: str
    drawn: bool

    def __post_init__(self) -> None:
        correction, by = stripped(self.correction), self.by
        for invalid, problem, remedy in (
            (
                self.correct is None and self.correction is None and self.score is None,
                "feedback says nothing",
                "pass correct=, correction= or score=",
            ),
            (self.correct not in (None, True, False), "correct= is neither true nor false", "pass True or False"),
            (
                self.correction is not None and correction is None,
                "correction= is no text, or empty",
                "pass the right answer as labels are shown",
            ),
            (
                len(correction or "") > MAX_CORRECTION_CHARS,
                f"correction= is longer than {MAX_CORRECTION_CHARS} characters",
                "pass a label",
            ),
            (
                self.score is not None and _finite(self.score) is None,
                "score= is no finite number",
                "pass one, or leave it out",
            ),
            (
                self.kind not in get_args(AnnotatorKind),
                "kind= is unknown",
                f"pass one of {', '.join(get_args(AnnotatorKind))}",
            ),
            (
                not isinstance(by, str) or len(by) > MAX_NAME_CHARS,
                f"by= is no text of up to {MAX_NAME_CHARS} characters",
                "pass a name or an id of who says so",
            ),
        ):
            if invalid:
                raise InvalidRequest(problem, remedy)

    def annotation(self, span_id: str, name: str) -> NewAnnotation:
        """What is written to Phoenix about one of the decision's spans."""
        correction = stripped(self.correction)
        says_label = self.correct is not None or correction is not None
        return NewAnnotation(
            span_id,
            name,
            self.kind,
            label=("correct" if self.correct else "wrong") if says_label else None,
            metadata=({CORRECTION: correction} if correction else {}) | dict([RANDOM_SAMPLING] if self.drawn else []),
            score=_finite(self.score),
            identifier=stripped(self.by) or self.kind.lower(),
        )


def _finite(score: Any) -> float | None:
    if isinstance(score, bool) or not isinstance(score, Real):  # not all of numpy's numbers are floats
        return None
    try:
        return number(float(score))
    except OverflowError:
        return None


class _SpansMissing(Exception):
    """Phoenix has not stored all spans of a batch yet."""


class _SomeRefused(PhoenixRefused):
    """Phoenix rejects something in a batch; the rest may be valid."""


class _ServerFailed(PhoenixUnavailable):
    """Phoenix answered with a server error, perhaps because of something in the batch."""


@dataclass(eq=False)
class _Waiting:
    annotation: NewAnnotation
    since: float = field(default_factory=time.monotonic)
    due: float = 0.0
    tries: int = 0
    server_errors: int = 0

    @property
    def alone(self) -> bool:
        return self.server_errors >= _ALONE_AFTER


class Feedback:
    """Sends annotations to one Phoenix.

    `address` returns its endpoint and key when they are needed, because tracing may be set up later.
    """

    def __init__(self, address: Callable[[], tuple[str, str | None]]) -> None:
        self._address = address
        begin_in_every_process(self)
        atexit.register(_flush_at_exit, weakref.ref(self))

    def begin(self) -> None:
        """Create the state of this process. After a fork, waiting feedback stays with the parent."""
        self._changed = threading.Condition()
        self._waiting: dict[tuple[str, str, str], _Waiting] = {}
        self._thread: threading.Thread | None = None
        # Created here, not in the thread: a child that is forked during the client's imports could never finish them.
        self._http = httpx.Client(timeout=_TIMEOUT_SECONDS)
        self._problem: Problem | None = None
        self._lost: Problem | None = None
        self._lost_count = 0

    @property
    def _shown(self) -> str:
        return without_secrets(self._address()[0].rstrip("/"))

    @property
    def problem(self) -> Problem | None:
        """Why feedback cannot be sent at present, or else what has been lost since the process started."""
        return self._problem or self._lost

    def put(self, annotation: NewAnnotation) -> None:
        """Send soon, without blocking. A later annotation with the same span, name and identifier replaces this one."""
        with self._changed:
            if len(self._waiting) >= CAPACITY and annotation.key not in self._waiting:
                full = f"{CAPACITY} pieces of feedback wait for Phoenix {self._shown}; one is dropped"
                self._lose(1, PhoenixUnavailable(full, "see the log"))
                return
            self._waiting[annotation.key] = _Waiting(annotation)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_waiting, name="autoopt-feedback", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def send(self, annotations: Sequence[NewAnnotation]) -> None:
        """Send now. Raises `PhoenixUnavailable` (also if a span has not arrived yet) and `PhoenixRefused`."""
        try:
            self._post(annotations)
        except _SpansMissing:
            raise PhoenixUnavailable(
                f"Phoenix {self._shown} does not have the span yet", "repeat, or send without waiting"
            ) from None

    def flush(self, seconds: float) -> bool:
        """Try to send everything that waits, for at most `seconds`. Returns False if something is left."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while self._waiting and (left := deadline - time.monotonic()) > 0:
                for waiting in self._waiting.values():
                    waiting.due = min(waiting.due, time.monotonic() + _RETRY_SECONDS[0])
                self._changed.notify_all()
                self._changed.wait(min(left, _RETRY_SECONDS[0]))
            return not self._waiting

    def _send_waiting(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                due = [waiting for waiting in self._waiting.values() if waiting.due <= now]
                batch = [waiting for waiting in due if not waiting.alone][:_BATCH] or due[:1]
                if not batch:
                    earliest = min((waiting.due for waiting in self._waiting.values()), default=None)
                    self._changed.wait(None if earliest is None else earliest - now)
                    continue
            self._try(batch)

    def _try(self, batch: Sequence[_Waiting]) -> None:
        """Send a batch. If one piece may be the cause of a failure, retry in halves, so that the others are stored."""
        try:
            self._post([waiting.annotation for waiting in batch])
        except (_SpansMissing, _SomeRefused) as e:
            if len(batch) > 1:
                self._try(batch[: len(batch) // 2])
                self._try(batch[len(batch) // 2 :])
            elif isinstance(e, _SomeRefused):
                self._lose(1, e)
                self._done(batch)
            else:
                self._later(batch, PhoenixRefused(f"Phoenix {self._shown} has no span of it", "is it traced there?"))
        except PhoenixUnavailable as e:
            self._note(e)
            for waiting in batch:
                waiting.server_errors += isinstance(e, _ServerFailed)
            self._later(batch, e)
        except Exception as e:  # noqa: BLE001 - one batch must not end the thread
            # The message of an unexpected error may quote the feedback.
            error = e if isinstance(e, AutooptError) else PhoenixRefused(f"feedback: {type(e).__name__}", "report this")
            self._lose(len(batch), error)
            self._done(batch)
        else:
            self._problem = None
            self._done(batch)

    def _done(self, batch: Sequence[_Waiting]) -> None:
        with self._changed:
            for waiting in batch:
                if self._waiting.get(waiting.annotation.key) is waiting:  # otherwise a later one has replaced it
                    del self._waiting[waiting.annotation.key]
            self._changed.notify_all()

    def _later(self, batch: Sequence[_Waiting], error: AutooptError) -> None:
        now = time.monotonic()
        for waiting in batch:
            waiting.tries += 1
            first, longest = _RETRY_SECONDS
            waiting.due = now + min(first * 2 ** (waiting.tries - 1), longest)
        if given_up := [waiting for waiting in batch if now - waiting.since > GIVE_UP_SECONDS]:
            self._lose(len(given_up), error)
            self._done(given_up)

    def _post(self, annotations: Sequence[NewAnnotation]) -> None:
        try:
            content = json.dumps({"data": [annotation.as_json() for annotation in annotations]}, allow_nan=False)
        except (TypeError, ValueError):
            raise _SomeRefused("the decision that it is on is not one that was made", "pass it as it was") from None
        endpoint, api_key = self._address()
        base_url, login = without_login(endpoint.rstrip("/"))
        headers = {"content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        try:
            response = self._http.post(
                f"{base_url}/v1/span_annotations",
                auth=login or httpx.USE_CLIENT_DEFAULT,
                params={"sync": "true"},  # otherwise Phoenix silently drops annotations of unknown spans
                content=content,
                headers=headers,
            )
        except httpx.TransportError as e:
            raise PhoenixUnavailable(
                f"Phoenix {self._shown} takes no feedback: {type(e).__name__}", "check AUTOOPT_PHOENIX_ENDPOINT"
            ) from e
        status = response.status_code
        if status == 404 and "span" in response.text.lower():
            raise _SpansMissing
        if status in {408, 429} or status >= 500:
            raise _ServerFailed(f"Phoenix {self._shown} takes no feedback: HTTP {status}", "see its log")
        if status in {401, 403}:
            raise PhoenixRefused.of_key(self._shown, status, response.text)
        if status in {400, 413, 422}:
            raise _SomeRefused(f"Phoenix {self._shown} refuses feedback: HTTP {status}", "check its version")
        if status != 200 or "json" not in response.headers.get("content-type", ""):
            # The response is not quoted, because it may repeat the key or the feedback.
            raise PhoenixRefused(
                f"Phoenix {self._shown} refuses feedback: HTTP {status}",
                "check that AUTOOPT_PHOENIX_ENDPOINT is Phoenix's own address, and its version",
            )

    def _note(self, error: AutooptError) -> None:
        if self._problem is None or self._problem.what != error.what:
            logger.warning("feedback: %s", error)
            self._problem = Problem("feedback", error.what, error.remedy, datetime.now(UTC))

    def _lose(self, count: int, error: AutooptError) -> None:
        """Record lost feedback. The problem stays, because only a person who sees it can send the feedback again."""
        self._lost_count += count
        lost = f"feedback was lost ({self._lost_count} so far), last because {error.what}"
        if self._lost is None:
            logger.warning("feedback: %s -> %s", lost, error.remedy)
        since = self._lost.since if self._lost else datetime.now(UTC)
        self._lost = Problem("feedback", lost, error.remedy, since)


def _flush_at_exit(feedback: "weakref.ref[Feedback]") -> None:
    alive = feedback()
    if alive is not None:
        alive.flush(_FLUSH_AT_EXIT_SECONDS)
