"""Fork safety: locks, threads and connections belong to one process, so a forked child creates its own."""

import os
import weakref
from typing import Protocol


class PerProcess(Protocol):
    def begin(self) -> None:
        """Create, or recreate, the state of this process."""
        ...


def begin_in_every_process(part: PerProcess) -> None:
    """Call `begin` now and in every child that this process forks while `part` is alive."""
    part.begin()
    _parts.add(part)


def _begin_all() -> None:
    for part in list(_parts):
        part.begin()


_parts: "weakref.WeakSet[PerProcess]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_begin_all)
