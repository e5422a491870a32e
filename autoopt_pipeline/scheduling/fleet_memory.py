"""What the sensor remembers of a fleet between ticks, so that a tick costs what changed and not what exists. Pure.

Most decisions hold until a known moment, as long as the tenant's configuration and runs are the same, so they are not
made again before. Of the tenants that only new traces would make due, Phoenix is first asked about those whose
application tells of enough decisions. What it tells is a hint: it decides who is asked first and who may wait, and
never starts a run. Nothing here is needed: after a restart, all are decided and asked about in turn.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto

from autoopt_pipeline.scheduling.conditions import Reason
from autoopt_pipeline.tenants.stores.base import StoredConfig

ASKED_AGAIN = timedelta(hours=1)
"""After so long Phoenix is asked about a tenant whatever its application tells: counts may be lost, and reviews that
people make in Phoenix are not counted."""

MOST_TOLD = 10**9
"""Larger numbers of decisions mean the same as this one."""


class Turn(Enum):
    """When Phoenix is asked about a tenant: before the others, in turn, or not now."""

    FIRST = auto()
    NEXT = auto()
    LATER = auto()


@dataclass(slots=True)
class Known:
    """What was decided of a tenant, for as long as `entry` and `mark` (what became of its runs) are the same.

    `reasons` are those of the modules that were decided without traces. They hold until a moment (Unix time). `pending`
    are the modules that only new traces make due, and `since` (Unix time) is how long one of them has waited. `missing`
    is how many decisions would make one due, by the name of their spans, and `answered_at` (Unix time) is when Phoenix
    last said so; None: it has not, and all evidence is missing.
    """

    entry: StoredConfig
    mark: Hashable
    until: float
    longest_interval: int
    reasons: tuple[Reason, ...]
    pending: tuple[str, ...] = ()
    since: float = 0.0
    missing: tuple[tuple[str, int], ...] = ()
    answered_at: float | None = None

    def holds(self, mark: Hashable, now: datetime) -> bool:
        """Whether the decisions would be the same now."""
        return now.timestamp() < self.until and mark == self.mark


@dataclass
class FleetMemory:
    """The tenants that were decided, and what applications have told of their decisions since Phoenix was asked.

    `told_until` is the end (UTC) of what was read of that, last in the spans `heard`. Of tenants that were decided
    before, and of others, `after` and `after_new` are the last that a tick decided.
    """

    known: dict[str, Known] = field(default_factory=dict)
    told_until: datetime | None = None
    heard: frozenset[str] = frozenset()
    after: str | None = None
    after_new: str | None = None
    _told: dict[str, Counter[str]] = field(default_factory=dict)
    _basis: object = None
    _now: datetime | None = None

    def begin(self, basis: object, tenants: Mapping[str, StoredConfig], now: datetime) -> None:
        """Forget tenants that are gone, and everything if its `basis` is another, or the clock was set back."""
        if basis != self._basis or (self._now and now < self._now):
            vars(self).update(vars(FleetMemory()))
        self._basis, self._now = basis, now
        for memory in (self.known, self._told):
            for tenant in memory.keys() - tenants.keys():
                del memory[tenant]

    def tell(self, counts: Mapping[str, Mapping[str, int]], tenants: Iterable[str]) -> None:
        """Add what applications told of these tenants: decisions by the name of their spans. Others are ignored."""
        for tenant in counts.keys() & tenants:
            told = self._told.setdefault(tenant, Counter())
            for span_name, count in counts[tenant].items():
                told[span_name] = min(MOST_TOLD, told[span_name] + count)

    def answered(self, tenant: str, missing: Sequence[tuple[str, int]] | None, now: datetime) -> None:
        """Remember how many decisions Phoenix said are missing. None: other evidence decides, so ask in turn."""
        known = self.known[tenant]
        known.answered_at = None if missing is None else now.timestamp()
        known.missing = tuple(missing or ())
        if tenant in self._told:
            self._told[tenant] = Counter()

    def turn(self, tenant: str, now: datetime) -> Turn:
        """When Phoenix is asked about a tenant that waits for traces."""
        known, told = self.known[tenant], self._told.get(tenant)
        if told and any(told[span_name] >= count for span_name, count in known.missing):
            return Turn.FIRST
        # An application that has never told anything may not count at all.
        if told is None or known.answered_at is None:
            return Turn.NEXT
        return Turn.NEXT if now.timestamp() >= known.answered_at + ASKED_AGAIN.total_seconds() else Turn.LATER
