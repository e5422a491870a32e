"""The traces of a period, read from Phoenix once, and what a run at any moment of it would have read.

Phoenix knows the present text of an annotation and when it was last changed. So an annotation counts from then on, and
an earlier text of it is not known.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain

from autoopt_pipeline.modules.spec import LoggedDecision, ModuleSpec
from autoopt_pipeline.scheduling.conditions import Evidence
from autoopt_pipeline.traces.client import Phoenix, Project
from autoopt_pipeline.traces.counts import Wanted, evidence_in
from autoopt_pipeline.traces.reader import (
    Collected,
    Spans,
    annotations_seen,
    as_decisions,
    existing_project,
    read_spans,
)


@dataclass(frozen=True)
class PastTraces:
    """The spans of a tenant's module, as Phoenix has them now. Times are UTC."""

    spec: ModuleSpec
    project: Project
    spans: Spans

    def collected(self, *, start: datetime, end: datetime, at: datetime) -> Collected:
        """Return what a run would have read at the moment `at`: spans in [start, end), and their annotations then."""

        def seen(spans: Iterable[LoggedDecision]) -> list[LoggedDecision]:
            return [_as_of(span, at) for span in spans if start <= span.time < end]

        spans = Spans(seen(self.spans.own), {name: seen(own) for name, own in self.spans.parts.items()})
        decisions = as_decisions(self.spec, spans)
        annotations = annotations_seen(self._project_as_of(at), self.spec, decisions, start)
        return Collected(self.project.id, tuple(decisions), annotations)

    def evidence(self, wanted: Wanted, *, until: datetime, at: datetime) -> Evidence:
        """Return the evidence that would have been counted at the moment `at`, in traces before `until`."""
        new = sum(wanted.since <= span.time < until for span in self.spans.own)
        return evidence_in(self._project_as_of(at), wanted, new)

    @property
    def reviews(self) -> int:
        """How many annotations of people the spans have."""
        return sum(annotation.kind == "HUMAN" for span in self._all_spans() for annotation in span.annotations)

    def _project_as_of(self, at: datetime) -> Project:
        newest = max((span.time for span in self._all_spans() if span.time <= at), default=None)
        counts: dict[str, int] = {}
        for part in self.spec.parts or (self.spec,):
            own = self.spans.parts[part.name] if self.spec.parts else self.spans.own
            known = (span for span in own if span.time <= at)
            made = sum(annotation.updated_at <= at for span in known for annotation in span.annotations)
            counts[part.contract.annotation] = made
        rounded = newest.replace(second=0, microsecond=0) + timedelta(minutes=1) if newest else None
        return replace(self.project, newest=rounded, annotations=counts)

    def _all_spans(self) -> Iterator[LoggedDecision]:
        return chain(self.spans.own, *self.spans.parts.values())


def read_past(phoenix: Phoenix, tenant_id: str, spec: ModuleSpec, *, start: datetime, end: datetime) -> PastTraces:
    """Read the spans in [start, end). Raises `PhoenixRefused` if the tenant's project does not exist."""
    project = existing_project(phoenix, tenant_id)
    return PastTraces(spec, project, read_spans(phoenix, project, spec, start=start, end=end))


def _as_of(span: LoggedDecision, at: datetime) -> LoggedDecision:
    if all(annotation.updated_at <= at for annotation in span.annotations):
        return span
    return replace(span, annotations=tuple(each for each in span.annotations if each.updated_at <= at))
