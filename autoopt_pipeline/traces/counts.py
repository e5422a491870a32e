"""Counts new evidence per (tenant, module) with as few requests to Phoenix as possible."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.scheduling.conditions import Evidence, RunOutcome
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.traces.client import CountRequest, Phoenix, Project
from autoopt_pipeline.traces.reader import annotations_of


@dataclass(frozen=True)
class Wanted:
    """A request to count what is new since `since`. `outcome` is the last outcome, if any."""

    tenant_id: str
    spec: ModuleSpec
    since: datetime
    outcome: RunOutcome | None


def gather_evidence(phoenix: Phoenix, wanted: Sequence[Wanted], *, until: datetime) -> dict[tuple[str, str], Evidence]:
    """Return the evidence per (tenant, module) in traces that started before `until`.

    The time of a project's newest trace (fifty projects per request) shows whether there may be new ones; only then are
    spans counted. The number of traces would not show it, because Phoenix deletes old ones. Phoenix cannot filter
    annotations by time, so their number is compared with the one at the last outcome, minus those deleted since.
    """
    if not wanted:
        return {}
    projects = phoenix.projects([project_name(w.tenant_id) for w in wanted])
    project_of = {(w.tenant_id, w.spec.name): projects.get(project_name(w.tenant_id)) for w in wanted}
    to_count = {
        (w.tenant_id, w.spec.name): CountRequest(project.id, w.spec.contract.span_name, w.since, until)
        for w in wanted
        if (project := project_of[w.tenant_id, w.spec.name]) and _may_have_new_traces(project, w)
    }
    counts = phoenix.count(list(to_count.values()))
    evidence = {}
    for w in wanted:
        key = (w.tenant_id, w.spec.name)
        project = project_of[key]
        if project is None:
            evidence[key] = Evidence(0, note=f"Phoenix has no project {project_name(w.tenant_id)} yet")
            continue
        evidence[key] = evidence_in(project, w, counts[to_count[key]] if key in to_count else 0)
    return evidence


def evidence_in(project: Project, wanted: Wanted, new_traces: int) -> Evidence:
    """Return the evidence in a project with so many new traces."""
    new_annotations = 0
    if wanted.outcome and wanted.outcome.annotations:
        total = annotations_of(wanted.spec, project.annotations)
        new_annotations = wanted.outcome.annotations.new(total, oldest=project.oldest)
    return Evidence(new_traces, new_annotations, _note(project, wanted, new_traces))


def _may_have_new_traces(project: Project, wanted: Wanted) -> bool:
    return project.newest is not None and project.newest > wanted.since


def _note(project: Project, wanted: Wanted, new_traces: int) -> str:
    if wanted.outcome is None and new_traces == 0 and project.newest:
        name, newest = wanted.spec.contract.span_name, f"{project.newest:%Y-%m-%d %H:%M} UTC"
        return f"the project has traces, the last before {newest}, but no span named {name!r} in the lookback"
    return ""
