"""Making examples and decisions for tests."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from autoopt_pipeline.devtools.traffic import PlayedRequest
from autoopt_pipeline.modules.spec import Annotation, Example, LoggedDecision, ModuleSpec, Provenance
from autoopt_pipeline.traces.reader import join_parts

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def example(
    query: str,
    label: str = "a",
    *,
    provenance: Provenance = Provenance.HUMAN,
    independent: bool = True,
    minute: int = 0,
) -> Example:
    span_id = hashlib.sha256(f"{minute} {query}".encode(errors="surrogatepass")).hexdigest()[:16]
    return Example(
        {"query": query},
        {"agent": label},
        label,
        provenance,
        independent,
        T0 + timedelta(minutes=minute),
        span_id,
        span_id * 2,
    )


def decision(attributes: dict[str, Any], *annotations: Annotation, failed: bool = False) -> LoggedDecision:
    return LoggedDecision("s" * 16, "t" * 32, T0, failed, attributes, annotations)


def annotation(
    label: str | None,
    kind: str = "HUMAN",
    *,
    minute: int = 0,
    sampled: bool = True,
    correction: str | None = None,
    made_in_ui: bool = False,
) -> Annotation:
    metadata = {"sampling": "random"} if sampled else {}
    if correction is not None:
        metadata["correction"] = correction
    return Annotation(kind, label, metadata, T0 + timedelta(minutes=minute), made_in_ui)


def as_read(spec: ModuleSpec, requests: list[PlayedRequest]) -> list[LoggedDecision]:
    """Played requests as a module's decisions, the way Phoenix gives them back."""
    decisions = [
        LoggedDecision(
            f"{number:016x}",
            f"{number:032x}",
            request.time,
            span.failed,
            span.attributes,
            tuple(
                Annotation(review.kind, review.label, dict(review.metadata), request.time, score=review.score)
                for review in span.reviews
                if review.name == spec.contract.annotation
            ),
        )
        for number, request in enumerate(requests)
        for span in request.spans
        if span.name == spec.contract.span_name
    ]
    return (
        join_parts(decisions, {part.name: as_read(part, requests) for part in spec.parts}) if spec.parts else decisions
    )


DETECTED = [{"modality": "text", "confidence": 0.5}, {"modality": "video", "confidence": 0.8}]
FUSION = {
    "cross_modal.query": "the clip and what was said about it",
    "cross_modal.detected_modalities": json.dumps(DETECTED),
    "cross_modal.fused": True,
    "cross_modal.primary": "video",
    "cross_modal.secondary": "text",
}
PLAN = {
    "orchestration.query": "find it and make it short",
    "orchestration.execution_order": "search_agent,summary_agent",
    "orchestration.pattern": "sequential",
    "orchestration.confidence": 0.9,
}


def gain(score: float) -> Annotation:
    return replace(annotation(None), score=score)
