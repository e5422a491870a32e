"""Which modules of which tenants a page of the overview shows, and in which order. Pure."""

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

_SORTED_BY: Mapping[str, _Key] = {
    "health": lambda each: list(Health).index(each.health),
    "tenant": lambda each: each.tenant_id.lower(),
    "module": lambda each: each.module,
    "new": lambda each: -_share_of_needed(each),
    "score": lambda each: -1.0 if each.active_score is None else each.active_score,
    "verdict": lambda each: each.verdict,
    "last": lambda each: each.last_at or _NEVER,
    "next": lambda each: each.decision.until or (_NEVER if each.decision.launch else _LATER),
}


@dataclass(frozen=True)
class Query:
    """What is asked for: `text` is a part of a tenant's id; empty fields choose all. `page` counts from 1.

    Without a `health`, what is turned off is left out.
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
        """From an address. What means nothing is left out, for addresses are typed and sent around."""
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
        """The address's query with some changes, without what is at its default."""
        wanted, default = vars(replace(self, **changes)), vars(Query())
        return urlencode({name: "1" if value is True else value for name, value in wanted.items()
                          if value != default[name]})  # fmt: skip

    def sorted_by(self, column: str) -> str:
        """The address's query with another order; the other way round where the order is this column's already."""
        return self.encode(sort=column, down=self.sort == column and not self.down, page=1)


@dataclass(frozen=True)
class Page:
    """One page of what was found. `health` counts all that the person may see, `modules` and the others name them."""

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


def select(standings: Iterable[ModuleStatus], query: Query) -> Page:
    """Filter, sort and cut. Equal rows are in the order of tenants and modules, so that pages do not overlap."""
    seen = sorted(standings, key=lambda each: (each.tenant_id.lower(), each.module))
    found = [each for each in seen if _matches(each, query)]
    found.sort(key=_SORTED_BY[query.sort], reverse=query.down)
    query = replace(query, page=min(query.page, pages_of(len(found))))
    counts = Counter(each.health for each in seen)
    return Page(
        rows=found[(query.page - 1) * PAGE : query.page * PAGE],
        found=len(found),
        tenants=len({each.tenant_id for each in seen}),
        health={health: counts[health] for health in Health if counts[health]},
        modules=sorted({each.module for each in seen}),
        verdicts=sorted({each.verdict for each in seen} - {""}),
        decisions=sorted({each.decision.reason.value for each in seen}),
        query=query,
    )


def _matches(standing: ModuleStatus, query: Query) -> bool:
    health = standing.health
    # Whoever looks for a tenant wants to find it, also where it is turned off.
    hidden = health is Health.DISABLED and not (query.text or query.health or query.decision)
    return (
        not hidden
        and query.text.lower() in standing.tenant_id.lower()
        and query.health in ("", health.value)
        and query.module in ("", standing.module)
        and query.verdict in ("", standing.verdict)
        and query.decision in ("", standing.decision.reason.value)
    )


def _share_of_needed(standing: ModuleStatus) -> float:
    evidence, need = standing.decision.evidence, standing.decision.need
    return evidence.total / need if evidence and need else 0.0
