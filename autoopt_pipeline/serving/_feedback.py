"""Feedback on decisions as Phoenix annotations: kept in memory until Phoenix has the span, and sent by one thread."""

import atexit
import encodings.idna  # noqa: F401 - else at the first connection, see `begin`
import logging
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import httpx

from autoopt_pipeline.addresses import without_login, without_secrets
from autoopt_pipeline.errors import AutooptError, PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.secrets import scrub
from autoopt_pipeline.serving._answers import Problem
from autoopt_pipeline.serving._fork import begin_in_every_process

logger = logging.getLogger(__name__)

Kind = Literal["HUMAN", "LLM", "CODE"]

CAPACITY = 1000
"""Feedback that may wait; what comes on top is dropped, and told."""

GIVE_UP_SECONDS = 900
"""How long a span may take to arrive. Phoenix stores some 130 a second, and what a sampler dropped never comes."""

_BATCH = 100
_TIMEOUT_SECONDS = 10
_RETRY_SECONDS = (0.5, 30)
"""First and longest wait before another try; it doubles."""

_FLUSH_AT_EXIT_SECONDS = 5


@dataclass(frozen=True)
class Annotation:
    """What is written to Phoenix. An equal span, name and identifier is replaced."""

    span_id: str
    name: str
    kind: Kind
    label: str | None
    score: float | None
    metadata: Mapping[str, str]
    identifier: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.span_id, self.name, self.identifier

    def as_json(self) -> dict[str, Any]:
        result = {"label": self.label, "score": self.score}
        return {
            "span_id": self.span_id,
            "name": self.name,
            "annotator_kind": self.kind,
            "result": {name: value for name, value in result.items() if value is not None},
            "metadata": dict(self.metadata),
            "identifier": self.identifier,
        }


class _SpansMissing(Exception):
    """Phoenix has not stored all spans of a batch (yet)."""


@dataclass(eq=False)
class _Waiting:
    annotation: Annotation
    since: float = field(default_factory=time.monotonic)
    due: float = 0.0
    tries: int = 0


class Feedback:
    """Sends annotations to one Phoenix."""

    def __init__(self, endpoint: str, api_key: str | None) -> None:
        self._endpoint, self._login = without_login(endpoint.rstrip("/"))
        self._shown = without_secrets(endpoint.rstrip("/"))
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        begin_in_every_process(self)
        atexit.register(_flush_at_exit, weakref.ref(self))

    def begin(self) -> None:
        """Make what belongs to one process. After a fork, what was waiting is left to the parent."""
        self._changed = threading.Condition()
        self._waiting: dict[tuple[str, str, str], _Waiting] = {}
        self._thread: threading.Thread | None = None
        # Not by the thread at its first use: what that imports meanwhile, a child forked then could never import.
        self._http = httpx.Client(auth=self._login, headers=self._headers, timeout=_TIMEOUT_SECONDS)
        self._problem: Problem | None = None

    @property
    def problem(self) -> Problem | None:
        return self._problem

    def put(self, annotation: Annotation) -> None:
        """Send soon, without blocking. A later one for the same span, name and identifier takes its place."""
        with self._changed:
            if len(self._waiting) >= CAPACITY and annotation.key not in self._waiting:
                self._note(PhoenixUnavailable(f"{CAPACITY} pieces of feedback wait; one is dropped", "see the log"))
                return
            self._waiting[annotation.key] = _Waiting(annotation)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_waiting, name="autoopt-feedback", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def send(self, annotations: Sequence[Annotation]) -> None:
        """Send now. Raises `PhoenixUnavailable`, also where a span has not arrived yet, and `PhoenixRefused`."""
        try:
            self._post(annotations)
        except _SpansMissing:
            raise PhoenixUnavailable(
                f"Phoenix {self._shown} does not have the span yet", "repeat, or send without waiting"
            ) from None

    def flush(self, seconds: float) -> bool:
        """Try all that waits at once, and wait for it. False when some is left."""
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
                batch = [waiting for waiting in self._waiting.values() if waiting.due <= now][:_BATCH]
                if not batch:
                    earliest = min((waiting.due for waiting in self._waiting.values()), default=None)
                    self._changed.wait(None if earliest is None else earliest - now)
                    continue
            self._try(batch)

    def _try(self, batch: Sequence[_Waiting]) -> None:
        """Send a batch. Where spans are missing, halves are tried, so that one late span holds up no others."""
        try:
            self._post([waiting.annotation for waiting in batch])
        except _SpansMissing:
            if len(batch) > 1:
                self._try(batch[: len(batch) // 2])
                self._try(batch[len(batch) // 2 :])
            else:
                self._later(batch, PhoenixRefused(f"Phoenix {self._shown} has no span of it", "is it traced there?"))
        except PhoenixUnavailable as e:
            self._note(e)
            self._later(batch, e)
        except Exception as e:  # noqa: BLE001 - the thread must go on, whatever is wrong with one batch
            self._note(e if isinstance(e, AutooptError) else PhoenixRefused(f"feedback: {e!r}", "see the log"))
            self._done(batch)
        else:
            self._problem = None
            self._done(batch)

    def _done(self, batch: Sequence[_Waiting]) -> None:
        with self._changed:
            for waiting in batch:
                if self._waiting.get(waiting.annotation.key) is waiting:  # else a later one has taken its place
                    del self._waiting[waiting.annotation.key]
            self._changed.notify_all()

    def _later(self, batch: Sequence[_Waiting], error: AutooptError) -> None:
        now = time.monotonic()
        for waiting in batch:
            waiting.tries += 1
            first, longest = _RETRY_SECONDS
            waiting.due = now + min(first * 2 ** (waiting.tries - 1), longest)
        if given_up := [waiting for waiting in batch if now - waiting.since > GIVE_UP_SECONDS]:
            self._note(error)
            self._done(given_up)

    def _post(self, annotations: Sequence[Annotation]) -> None:
        try:
            response = self._http.post(
                f"{self._endpoint}/v1/span_annotations",
                params={"sync": "true"},  # else annotations of unknown spans are dropped without a word
                json={"data": [annotation.as_json() for annotation in annotations]},
            )
        except httpx.TransportError as e:
            raise PhoenixUnavailable(
                f"Phoenix {self._shown} takes no feedback: {type(e).__name__}", "check AUTOOPT_PHOENIX_ENDPOINT"
            ) from e
        status = response.status_code
        if status == 404 and "span" in response.text.lower():
            raise _SpansMissing
        if status in {408, 429} or status >= 500:
            raise PhoenixUnavailable(f"Phoenix {self._shown} takes no feedback: HTTP {status}", "see its log")
        if status in {401, 403}:
            raise PhoenixRefused(f"Phoenix {self._shown} refuses the key ({status})", "set AUTOOPT_PHOENIX_API_KEY")
        if status != 200 or "json" not in response.headers.get("content-type", ""):
            said = scrub(response.text)
            raise PhoenixRefused(
                f"Phoenix {self._shown} refuses feedback: HTTP {status} {said[:200]}",
                "check that AUTOOPT_PHOENIX_ENDPOINT is Phoenix's own address, and its version",
            )

    def _note(self, error: AutooptError) -> None:
        if self._problem is None or self._problem.what != error.what:
            logger.warning("feedback: %s", error)
            self._problem = Problem("feedback", error.what, error.remedy, datetime.now(UTC))


def _flush_at_exit(feedback: "weakref.ref[Feedback]") -> None:
    alive = feedback()
    if alive is not None:
        alive.flush(_FLUSH_AT_EXIT_SECONDS)
