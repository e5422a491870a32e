"""How much is new in Phoenix for each (tenant, module), in as few requests as possible."""

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
    """Count what is new from `since` on. `outcome` is the last one, if there was any."""

    tenant_id: str
    spec: ModuleSpec
    since: datetime
    outcome: RunOutcome | None


def gather_evidence(phoenix: Phoenix, wanted: Sequence[Wanted], *, until: datetime) -> dict[tuple[str, str], Evidence]:
    """Evidence per (tenant, module), for traces that started before `until`.

    The time of the newest trace, of fifty projects in a request, tells who may have some; only those are counted span
    by span. (The number of traces would not tell: Phoenix deletes old ones, as many as come where traffic is even.)
    Annotations carry no time that Phoenix could filter by, so their number is compared with that of the last outcome,
    less what was deleted since.
    """
    if not wanted:
        return {}
    projects = phoenix.projects([project_name(w.tenant_id) for w in wanted])
    found = {(w.tenant_id, w.spec.name): projects.get(project_name(w.tenant_id)) for w in wanted}
    to_count = {
        (w.tenant_id, w.spec.name): CountRequest(project.id, w.spec.contract.span_name, w.since, until)
        for w in wanted
        if (project := found[w.tenant_id, w.spec.name]) and _may_have_new_traces(project, w)
    }
    counts = phoenix.count(list(to_count.values()))
    evidence = {}
    for w in wanted:
        key = (w.tenant_id, w.spec.name)
        project = found[key]
        if project is None:
            evidence[key] = Evidence(0, note=f"Phoenix has no project {project_name(w.tenant_id)} yet")
            continue
        new_traces = counts[to_count[key]] if key in to_count else 0
        new_annotations = 0
        if w.outcome and w.outcome.annotations:
            total = annotations_of(w.spec, project.annotations)
            new_annotations = w.outcome.annotations.new(total, oldest=project.oldest)
        evidence[key] = Evidence(new_traces, new_annotations, _note(project, w, new_traces))
    return evidence


def _may_have_new_traces(project: Project, wanted: Wanted) -> bool:
    return project.newest is not None and project.newest > wanted.since


def _note(project: Project, wanted: Wanted, new_traces: int) -> str:
    if wanted.outcome is None and new_traces == 0 and project.newest:
        name, newest = wanted.spec.contract.span_name, f"{project.newest:%Y-%m-%d %H:%M} UTC"
        return f"the project has traces, the last before {newest}, but no span named {name!r} in the lookback"
    return ""
