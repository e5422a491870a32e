"""Locks, threads and connections belong to the process that made them: a forked child makes its own."""

import os
import weakref
from typing import Protocol


class PerProcess(Protocol):
    def begin(self) -> None:
        """Make what belongs to one process, or make it anew."""
        ...


def begin_in_every_process(part: PerProcess) -> None:
    """Call `begin` now, and again in every child that this process forks while `part` lives."""
    part.begin()
    _parts.add(part)


def _begin_all() -> None:
    for part in list(_parts):
        part.begin()


_parts: "weakref.WeakSet[PerProcess]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_begin_all)
