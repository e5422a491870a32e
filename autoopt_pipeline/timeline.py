"""What happened, read page by page from places that are each in the order of time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar


class Dated(Protocol):
    @property
    def at(self) -> datetime: ...


T = TypeVar("T")
D = TypeVar("D", bound=Dated)


@dataclass(frozen=True)
class Stretch(Generic[T]):
    """Things newest first: all that happened since `reaches` (UTC), which is None where nothing older is left."""

    found: Sequence[T]
    reaches: datetime | None


def newest_of(
    read: Callable[[datetime | None, int], Sequence[D]],
    wanted: Callable[[D], bool],
    *,
    before: datetime | None,
    limit: int,
    most: int,
) -> Stretch[D]:
    """The newest things before a moment that are wanted: about `limit` of them, and no more than about `most` are read.

    `read` returns as many as it is asked for, the newest first; fewer mean that there are no others.
    """
    found: list[D] = []
    looked_at = 0
    while True:
        page = read(before, limit)
        found += filter(wanted, page)
        looked_at += len(page)
        if len(page) < limit:
            return Stretch(found, None)
        before = page[-1].at
        if len(found) >= limit or looked_at >= most:
            return Stretch(found, before)
