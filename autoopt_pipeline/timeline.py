"""Events read page by page from sources that each are in the order of time."""

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
    """Events, newest first: all that happened since `reaches` (UTC), or ever if that is None."""

    items: Sequence[T]
    reaches: datetime | None


def newest_of(
    read: Callable[[datetime | None, int], Sequence[D]],
    wanted: Callable[[D], bool],
    *,
    before: datetime | None,
    limit: int,
    most: int,
) -> Stretch[D]:
    """The newest events before a moment that `wanted` accepts: about `limit`, out of about `most` at most.

    `read` returns as many events as requested, newest first. Fewer mean that there are no others.
    """
    items: list[D] = []
    read_so_far = 0
    while True:
        page = read(before, limit)
        items += filter(wanted, page)
        read_so_far += len(page)
        if len(page) < limit:
            return Stretch(items, None)
        before = page[-1].at
        if len(items) >= limit or read_so_far >= most:
            return Stretch(items, before)
