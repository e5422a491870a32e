"""The order in which Phoenix is asked about tenants, when one tick has no time for all. Pure."""

from bisect import bisect_right
from typing import TypeVar

QueuePosition = tuple[float, str]
"""A tenant's place in the queue: since when (Unix time) one of its modules has waited, and its id."""


_T = TypeVar("_T", QueuePosition, str)


def queue_order(turns: list[_T], after: _T | None) -> list[_T]:
    """The longest waiting, or names in their order. With `after`, the queue starts behind that and wraps around."""
    ordered = sorted(turns)
    start = bisect_right(ordered, after) if after else 0
    return ordered[start:] + ordered[:start]
