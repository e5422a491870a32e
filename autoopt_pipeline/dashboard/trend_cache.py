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
        newest = {(row.tenant_id, row.module): row.attempts.outcome_id for row in rows}
        wanted = [(key, outcome_id) for key, outcome_id in newest.items() if outcome_id is not None]
        with self._lock:
            known = {
                key: self._known[key, outcome_id] for key, outcome_id in wanted if (key, outcome_id) in self._known
            }
        missing = [(key, outcome_id) for key, outcome_id in wanted if key not in known]
        begins = {row.tenant_id: row.begins for row in rows if row.begins}
        read = read_trends(instance, [key for key, _ in missing], begins)
        with self._lock:
            self._known |= {(key, outcome_id): read.get(key, ()) for key, outcome_id in missing}
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
        return known | dict(read)
