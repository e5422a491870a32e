"""Keeps score trends until a module has a newer outcome, because reading them is what makes an overview slow."""

import threading
from collections.abc import Mapping, Sequence

import dagster as dg

from autoopt_pipeline.run_history.outcomes import ModuleKey
from autoopt_pipeline.status.module_status import ModuleStatus
from autoopt_pipeline.status.score_trend import Point, read_trends

_KEPT = 5000
"""A trend takes 3 KB."""


class TrendCache:
    """The trends that were read last, by module and its newest outcome."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[ModuleKey, int], Sequence[Point]] = {}

    def trends(self, instance: dg.DagsterInstance, rows: Sequence[ModuleStatus]) -> Mapping[ModuleKey, Sequence[Point]]:
        """The trends of these modules, as `read_trends` reads them."""
        wanted = {(row.tenant_id, row.module): row for row in rows if row.attempts.outcome_id is not None}
        with self._lock:
            found = {key: self._known.get((key, row.attempts.outcome_id or 0)) for key, row in wanted.items()}
        missing = [key for key, points in found.items() if points is None]
        begins = {row.tenant_id: row.begins for row in rows if row.begins}
        read = read_trends(instance, missing, begins)
        with self._lock:
            for key in missing:
                self._known[key, wanted[key].attempts.outcome_id or 0] = read.get(key, ())
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
        return {key: read.get(key, ()) if points is None else points for key, points in found.items()}
