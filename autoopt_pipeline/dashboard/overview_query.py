"""The filter, order and page of the overview. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from autoopt_pipeline.dashboard.paging import PAGE, page_number, pages_of
from autoopt_pipeline.status.module_status import Health, ModuleStatus

_NEVER = datetime.min.replace(tzinfo=UTC)
_LATER = datetime.max.replace(tzinfo=UTC)


_Key = Callable[[ModuleStatus], Any]

_RANK = {health: rank for rank, health in enumerate(Health)}

_SORTED_BY: Mapping[str, _Key] = {
    "health": lambda status: _RANK[status.health],
    "tenant": lambda status: status.tenant_id.lower(),
    "module": lambda status: status.module,
    "new": lambda status: -_share_of_needed(status),
    "score": lambda status: -1.0 if status.active_score is None else status.active_score,
    "verdict": lambda status: status.verdict,
    "last": lambda status: status.last_at or _NEVER,
    "next": lambda status: status.decision.until or (_NEVER if status.decision.launch else _LATER),
}


@dataclass(frozen=True)
class Query:
    """A filter of modules: `text` is a part of a tenant's id, and empty fields match everything. `page` counts from 1.

    Without a `health`, modules that are turned off do not match.
    """

    text: str = ""
    health: str = ""
    module: str = ""
    verdict: str = ""
    decision: str = ""
    sort: str = "health"
    down: bool = False
    page: int = 1

    @classmethod
    def read(cls, params: Mapping[str, str]) -> "Query":
        """Read a query from a URL. Invalid values count as empty, because people type URLs and send them around."""
        sort = params.get("sort", "")
        return cls(
            text=params.get("text", "").strip()[:200],
            health=params.get("health", "") if params.get("health") in set(Health) else "",
            module=params.get("module", "")[:200],
            verdict=params.get("verdict", "")[:200],
            decision=params.get("decision", "")[:200],
            sort=sort if sort in _SORTED_BY else "health",
            down=params.get("down") == "1",
            page=page_number(params.get("page", "")),
        )

    def encode(self, **changes: Any) -> str:
        """The URL query with some changes, without the fields at their defaults."""
        wanted, default = vars(replace(self, **changes)), vars(Query())
        return urlencode({name: "1" if value is True else value for name, value in wanted.items()
                          if value != default[name]})  # fmt: skip

    def sorted_by(self, column: str) -> str:
        """The URL query that sorts by a column; a second click on the same column reverses the order."""
        return self.encode(sort=column, down=self.sort == column and not self.down, page=1)


@dataclass(frozen=True)
class Page:
    """One page of the overview. `health` counts all modules that the user may see.

    `modules`, `verdicts` and `decisions` are the values to filter by.
    """

    rows: Sequence[ModuleStatus]
    found: int
    tenants: int
    health: Mapping[Health, int]
    modules: Sequence[str]
    verdicts: Sequence[str]
    decisions: Sequence[str]
    query: Query

    @property
    def pages(self) -> int:
        return pages_of(self.found)

    @property
    def first(self) -> int:
        return (self.query.page - 1) * PAGE + 1


def select(statuses: Iterable[ModuleStatus], query: Query) -> Page:
    """Filter, sort and cut. Equal rows are sorted by tenant and module, so that pages do not overlap."""
    visible = sorted(statuses, key=lambda status: (status.tenant_id.lower(), status.module))
    matching = [status for status in visible if _matches(status, query)]
    matching.sort(key=_SORTED_BY[query.sort], reverse=query.down)
    query = replace(query, page=min(query.page, pages_of(len(matching))))
    counts = Counter(status.health for status in visible)
    return Page(
        rows=matching[(query.page - 1) * PAGE : query.page * PAGE],
        found=len(matching),
        tenants=len({status.tenant_id for status in visible}),
        health={health: counts[health] for health in Health if counts[health]},
        modules=sorted({status.module for status in visible}),
        verdicts=sorted({status.verdict for status in visible} - {""}),
        decisions=sorted({status.decision.reason.value for status in visible}),
        query=query,
    )


def _matches(status: ModuleStatus, query: Query) -> bool:
    # A user who searches for a tenant wants to find it even when it is turned off.
    hidden = status.health is Health.DISABLED and not (query.text or query.health or query.decision)
    return (
        not hidden
        and (not query.text or query.text.lower() in status.tenant_id.lower())
        and (not query.health or query.health == status.health.value)
        and (not query.module or query.module == status.module)
        and (not query.verdict or query.verdict == status.verdict)
        and (not query.decision or query.decision == status.decision.reason.value)
    )


def _share_of_needed(status: ModuleStatus) -> float:
    decision = status.decision
    return decision.counted / decision.need if decision.need else 0.0
