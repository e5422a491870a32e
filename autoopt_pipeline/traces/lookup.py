"""Finds the inputs of single traces, regardless of their age."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from autoopt_pipeline.modules.labeling import Unusable, read_inputs
from autoopt_pipeline.modules.spec import LoggedDecision, ModuleSpec, query_of
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.traces.client import PAGE, Phoenix

if TYPE_CHECKING:
    from phoenix.client.__generated__.v1 import Span

_TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class AskedText:
    """The input text of one decision of a trace, as in its span."""

    trace_id: str
    span_id: str
    query: str


def find_asked(
    phoenix: Phoenix, tenant_id: str, specs: Iterable[ModuleSpec], trace_ids: Iterable[str]
) -> Collection[AskedText]:
    """Return the inputs of these traces' decisions, read by their modules' contracts as for training.

    Traces that Phoenix no longer has, and text that cannot have been learnt, are missing. Raises `PhoenixUnavailable`
    or `PhoenixRefused`.
    """
    project = phoenix.project(project_name(tenant_id))
    if project is None:
        return ()
    by_span: dict[str, list[ModuleSpec]] = {}
    for spec in specs:
        by_span.setdefault(spec.contract.span_name, []).append(spec)
    asked: dict[AskedText, None] = {}
    for trace_id in trace_ids:
        for span in _spans(phoenix, project.id, trace_id, list(by_span)):
            decision = _decision(span)
            for spec in by_span.get(span["name"], ()):
                try:
                    query = query_of(read_inputs(spec, decision))
                except Unusable:
                    continue
                asked[AskedText(trace_id, decision.span_id, query)] = None
    return tuple(asked)


def span_ids_of(phoenix: Phoenix, tenant_id: str, trace_ids: Iterable[str]) -> frozenset[str]:
    """All spans of these traces that Phoenix has, also of modules that are not installed. Raises as `find_asked`."""
    project = phoenix.project(project_name(tenant_id))
    if project is None:
        return frozenset()
    spans = (span for trace_id in trace_ids for span in _spans(phoenix, project.id, trace_id))
    return frozenset(span["context"]["span_id"] for span in spans)


def _spans(phoenix: Phoenix, project_id: str, trace_id: str, names: Sequence[str] | None = None) -> "list[Span]":
    with phoenix.client(f"trace {trace_id}") as client:
        return client.spans.get_spans(
            project_identifier=project_id, trace_ids=[trace_id], name=names, limit=PAGE, timeout=_TIMEOUT_SECONDS
        )


def _decision(span: "Span") -> LoggedDecision:
    context = span["context"]
    return LoggedDecision(
        span_id=context["span_id"],
        trace_id=context["trace_id"],
        time=datetime.fromisoformat(span["start_time"]),
        failed=span["status_code"] == "ERROR",
        attributes=dict(span.get("attributes") or {}),
    )
