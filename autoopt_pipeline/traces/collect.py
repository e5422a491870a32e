"""What one run learns from: a tenant's decisions in the lookback, and the totals to compare with next time."""

from dataclasses import dataclass
from datetime import datetime

from autoopt_pipeline.contract import SpanContract, project_name
from autoopt_pipeline.errors import PhoenixRefused
from autoopt_pipeline.modules.spec import Decision
from autoopt_pipeline.traces.phoenix import Phoenix


@dataclass(frozen=True)
class Collected:
    """Decisions of one window, and the project's totals at its end; None where Phoenix cannot say."""

    project_id: str
    decisions: tuple[Decision, ...]
    trace_total: int | None
    annotation_total: int | None


def collect(phoenix: Phoenix, tenant_id: str, contract: SpanContract, *, start: datetime, end: datetime) -> Collected:
    """Read a window. Raises `PhoenixRefused` when the tenant's project does not exist."""
    name = project_name(tenant_id)
    project = phoenix.project(name, until=end)
    if project is None:
        raise PhoenixRefused(
            f"Phoenix {phoenix.endpoint} has no project {name}",
            "let the tenant's application send traces there",
        )
    # Totals first: what is annotated while this window is read counts as new next time.
    counts = phoenix.annotation_counts([project.id])
    annotation_total = counts[project.id].get(contract.annotation, 0) if project.id in counts else None
    decisions = phoenix.decisions(name, contract, start=start, end=end)
    return Collected(project.id, tuple(decisions), project.traces, annotation_total)
