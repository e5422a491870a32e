"""Making examples and decisions for tests."""

from datetime import UTC, datetime, timedelta
from typing import Any

from autoopt_pipeline.modules.spec import Annotation, Decision, Example, Provenance

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def example(
    query: str,
    label: str = "a",
    *,
    provenance: Provenance = Provenance.HUMAN,
    independent: bool = True,
    minute: int = 0,
) -> Example:
    span_id = f"{abs(hash((query, minute))):016x}"[:16]
    return Example(
        {"query": query}, label, provenance, independent, T0 + timedelta(minutes=minute), span_id, span_id * 2
    )


def decision(attributes: dict[str, Any], *annotations: Annotation, failed: bool = False) -> Decision:
    return Decision("s" * 16, "t" * 32, T0, failed, attributes, annotations)


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
