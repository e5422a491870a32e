"""The order in which Phoenix is asked about tenants, when one tick has no time for all. Pure."""

from bisect import bisect_right

QueuePosition = tuple[float, str]
"""A tenant's place in the queue: since when (Unix time) one of its modules has waited, and its id."""


def queue_order(turns: list[QueuePosition], after: QueuePosition | None) -> list[QueuePosition]:
    """The longest waiting first. With `after`, the queue starts behind that position and wraps around."""
    ordered = sorted(turns)
    start = bisect_right(ordered, after) if after else 0
    return ordered[start:] + ordered[:start]
