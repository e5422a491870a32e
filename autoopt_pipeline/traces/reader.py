"""Reads a run's data: a tenant's decisions in the lookback, and the number of annotations for the next comparison."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from autoopt_pipeline.errors import PhoenixRefused
from autoopt_pipeline.modules.spec import LoggedDecision, ModuleSpec
from autoopt_pipeline.scheduling.annotation_counts import AnnotationsSeen
from autoopt_pipeline.span_contract import SpanContract, project_name
from autoopt_pipeline.traces.client import CountRequest, Phoenix, Project
from autoopt_pipeline.traces.truncation import mark_cut


@dataclass(frozen=True)
class Collected:
    """Decisions of one window, and the project's annotations (None if Phoenix cannot tell)."""

    project_id: str
    decisions: tuple[LoggedDecision, ...]
    annotations: AnnotationsSeen

    def without(self, trace_ids: Collection[str]) -> "Collected":
        """Return a copy without these traces' decisions. Annotations stay, because they are compared with Phoenix's."""
        kept = tuple(decision for decision in self.decisions if decision.trace_id not in trace_ids)
        return replace(self, decisions=kept)


def collect(phoenix: Phoenix, tenant_id: str, spec: ModuleSpec, *, start: datetime, end: datetime) -> Collected:
    """Read a window. Raises `PhoenixRefused` if the tenant's project does not exist."""
    project = existing_project(phoenix, tenant_id)
    decisions = read_decisions(phoenix, project, spec, start=start, end=end)
    return Collected(project.id, tuple(decisions), annotations_seen(project, spec, decisions, start))


def existing_project(phoenix: Phoenix, tenant_id: str) -> Project:
    """Return the tenant's project. Raises `PhoenixRefused` if it does not exist."""
    name = project_name(tenant_id)
    project = phoenix.project(name)
    if project is None:
        raise PhoenixRefused(
            f"Phoenix {phoenix.endpoint} has no project {name}",
            "let the tenant's application send traces there",
        )
    return project


def annotations_seen(
    project: Project, spec: ModuleSpec, decisions: Sequence[LoggedDecision], start: datetime
) -> AnnotationsSeen:
    """Return the annotations that the project had, for the next comparison. `decisions` are those from `start` on."""
    # The total was read before the decisions, so an annotation written in between counts as new next time.
    total = annotations_of(spec, project.annotations)
    judged = [part for decision in decisions for part in (decision.parts.values() if spec.parts else (decision,))]
    spans = [decision.time for decision in judged for _ in decision.annotations]
    return AnnotationsSeen.of(total, spans, read_from=start, oldest=project.oldest)


def read_decisions(
    phoenix: Phoenix, project: Project, spec: ModuleSpec, *, start: datetime, end: datetime, also: Sequence[str] = ()
) -> list[LoggedDecision]:
    """Return a module's decisions in [start, end), with the attributes in `also`. Composed ones include their parts'.

    Marks texts that were truncated before they reached Phoenix.
    """
    return as_decisions(spec, read_spans(phoenix, project, spec, start=start, end=end, also=also))


def bounded_window(
    phoenix: Phoenix, project: Project, spec: ModuleSpec, start: datetime, end: datetime, *, most: int, newest: bool
) -> tuple[datetime, datetime]:
    """Halve [start, end) until it has no more than `most` decisions. Keeps the newest ones, or else the oldest.

    Halving ends with a moment, whatever Phoenix counts there.
    """
    while phoenix.count([window := CountRequest(project.id, spec.contract.span_name, start, end)])[window] > most:
        middle = start + (end - start) / 2
        if middle in (start, end):
            break
        start, end = (middle, end) if newest else (start, middle)
    return start, end


@dataclass(frozen=True)
class Spans:
    """The spans of a module and of its parts, by name, oldest first, as Phoenix has them."""

    own: Sequence[LoggedDecision]
    parts: Mapping[str, Sequence[LoggedDecision]]


def read_spans(
    phoenix: Phoenix, project: Project, spec: ModuleSpec, *, start: datetime, end: datetime, also: Sequence[str] = ()
) -> Spans:
    """Return the spans in [start, end), those of the module with the attributes in `also`."""

    def read(contract: SpanContract, also: Sequence[str] = ()) -> list[LoggedDecision]:
        return phoenix.decisions(project, contract, start=start, end=end, also=also)

    return Spans(read(spec.contract, also), {part.name: read(part.contract) for part in spec.parts})


def as_decisions(spec: ModuleSpec, spans: Spans) -> list[LoggedDecision]:
    """Return the decisions in the spans of one window. Composed ones include their parts'.

    Which texts were truncated shows only beside the others of the window.
    """
    decisions = mark_cut(spans.own, spec.contract)
    parts = {part.name: mark_cut(spans.parts[part.name], part.contract) for part in spec.parts}
    return join_parts(decisions, parts) if parts else decisions


def annotations_of(spec: ModuleSpec, counts: Mapping[str, int]) -> int:
    """Return how many of a project's annotations are for this module or one of its parts."""
    names = {part.contract.annotation for part in spec.parts} or {spec.contract.annotation}
    return sum(counts.get(name, 0) for name in names)


def join_parts(
    decisions: Sequence[LoggedDecision], parts: Mapping[str, Sequence[LoggedDecision]]
) -> list[LoggedDecision]:
    """Add to each decision its parts' decisions in the same trace. Of several, the last one counts."""
    by_trace = {name: {decision.trace_id: decision for decision in own} for name, own in parts.items()}
    return [
        replace(
            decision,
            parts={name: own[decision.trace_id] for name, own in by_trace.items() if decision.trace_id in own},
        )
        for decision in decisions
    ]
