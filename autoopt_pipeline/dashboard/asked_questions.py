"""The questions that reviewers have on their screens, so that an answer is not lost while Phoenix does not answer."""

import threading
from dataclasses import dataclass
from datetime import timedelta

from autoopt_pipeline.reviews.queue import Question, ReviewQueue

_KEPT = 200
"""A question is as long as a request of the tenant's application."""


@dataclass(frozen=True)
class AskedQuestion:
    """A question with its place in the queue, from 1. `again` means that it has a review already, and `decides_after`
    is that of the queue."""

    question: Question
    place: int
    total: int
    time_left: timedelta
    again: bool
    decides_after: int | None

    @classmethod
    def of(cls, queue: ReviewQueue, question: Question) -> "AskedQuestion":
        again = question.trace.span_id in queue.reviews
        place = max(1, queue.reviewed if again else queue.reviewed + 1)
        return cls(question, place, len(queue.traces), queue.time_left, again, queue.decides_after)


_Key = tuple[str, str, str]


class AskedQuestions:
    """The last questions that were shown, by tenant, module and span. Those that were answered are gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[_Key, AskedQuestion] = {}

    def keep(self, asked: AskedQuestion) -> AskedQuestion:
        key = _key(asked.question)
        with self._lock:
            self._asked.pop(key, None)
            self._asked[key] = asked
            if len(self._asked) > _KEPT:
                del self._asked[next(iter(self._asked))]
        return asked

    def find(self, tenant_id: str, module: str, span_id: str) -> AskedQuestion | None:
        return self._asked.get((tenant_id, module, span_id))

    def forget(self, question: Question) -> None:
        with self._lock:
            self._asked.pop(_key(question), None)


def _key(question: Question) -> _Key:
    return question.tenant_id, question.module, question.trace.span_id
