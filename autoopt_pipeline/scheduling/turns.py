"""In which order tenants are asked about, when there is no time for all of them in one tick. Pure."""

from bisect import bisect_right

QueuePosition = tuple[float, str]
"""A tenant's place in the order in which Phoenix is asked: since when (Unix time) a module of it waits, and its id."""


def queue_order(turns: list[QueuePosition], after: QueuePosition | None) -> list[QueuePosition]:
    """The longest waiting first; with `after`, from the next one on, and then from the first."""
    ordered = sorted(turns)
    start = bisect_right(ordered, after) if after else 0
    return ordered[start:] + ordered[:start]
