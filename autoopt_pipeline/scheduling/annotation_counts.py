"""How many annotations of a project are new, although Phoenix knows only their number and deletes old traces."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

MARKS = 50
"""Span times that are kept of an outcome: enough to count the deleted annotations to some 2 %."""


@dataclass(frozen=True)
class AnnotationsSeen:
    """The annotations that a project had at an outcome.

    `marks` are starts of the spans that they are on, in Unix seconds, oldest first and evenly spread over `total`.
    """

    total: int
    marks: Sequence[int] = ()

    @classmethod
    def of(
        cls, total: int, spans: Iterable[datetime], *, read_from: datetime, oldest: datetime | None
    ) -> "AnnotationsSeen":
        """`spans` are the starts of the spans since `read_from`, once for each annotation.

        The other annotations are on spans that were not read, from `oldest` on, and are taken to be spread evenly.
        """
        read = sorted(span.timestamp() for span in spans)[-total:] if total else []
        end = read_from.timestamp()
        begin = min(oldest.timestamp() if oldest else end, end)
        unread = total - len(read)
        times = [begin + (end - begin) * (i + 0.5) / unread for i in range(unread)] + read
        kept = min(total, MARKS)
        return cls(total, tuple(int(times[_rank(i, kept, total)]) for i in range(kept)))

    def new(self, total: int, *, oldest: datetime | None) -> int:
        """How many of the present `total` are new, given that traces before `oldest` are deleted."""
        return max(0, total - self._left(oldest))

    def _left(self, oldest: datetime | None) -> int:
        """How many of the earlier annotations are on traces from `oldest` on; none where there are no traces."""
        if oldest is None:
            return 0
        since, marks = oldest.timestamp(), self.marks
        place = bisect_left(marks, since)
        if place == 0:  # nothing was deleted
            return self.total
        if place == len(marks):
            return 0
        below, above = _rank(place - 1, len(marks), self.total), _rank(place, len(marks), self.total)
        share = (since - marks[place - 1]) / (marks[place] - marks[place - 1])
        return self.total - max(below + 1, round(below + share * (above - below)))


def _rank(mark: int, marks: int, total: int) -> int:
    """The place of a mark among all annotations."""
    return mark * (total - 1) // (marks - 1) if marks > 1 else 0
