"""The span contract: where a decision of the application stands in Phoenix, and how feedback on it is written.

The reader, the sample traffic and an application's instrumentation all go by this file. Attribute paths are
tried in order and the first one present wins. `a.b` is a span attribute; `a.b:key` is `key` inside the JSON
object that the attribute `a.b` holds (OpenInference writes `input.value` and `output.value` that way).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from autoopt_pipeline.tenant_id import validate_tenant_id

PROJECT_TEMPLATE = "{tenant_id}-cogniverse-routing"

ROUTING_SPAN = "cogniverse.routing"
CROSS_MODAL_SPAN = "cogniverse.cross_modal"
ORCHESTRATION_SPAN = "cogniverse.orchestration"

REVIEW_SAMPLE = "autoopt.review_sample"
"""Span attribute, true when the application drew this request at random for review, before its outcome was known."""

PROGRAM_VERSION = "autoopt.program_version"
"""Span attribute: the program version that made the decision, `BASELINE` where none was active."""

BASELINE = "baseline"

ARM = "autoopt.arm"
"""Span attribute: what that version was to the request: `active`, `CANARY`, or `BASELINE`."""

CANARY = "canary"
"""Of two versions that serve side by side, the one with the small share of requests."""

TENANT_ID = "autoopt.tenant_id"
MODULE = "autoopt.module"
REQUEST_ID = "autoopt.request_id"
"""Span attributes: whose decision it is, of which module, and the application's name for the request."""

RANDOM_SAMPLING = ("sampling", "random")
"""Annotation metadata that says: this trace was drawn at random, whatever its outcome."""

CORRECTION = "correction"
"""Annotation metadata key that holds the right answer when the label says only that the decision was wrong.

An answer is written as its label is shown: an agent's name, or a plan such as `search_agent > summary_agent` (one
after the other) or `search_agent + report_agent` (side by side).
"""

CONFIRMING = frozenset({"correct", "correct_routing", "right"})
REFUTING = frozenset({"wrong", "wrong_routing", "incorrect"})
UNDECIDED = frozenset({"ambiguous", "insufficient_info", "unsure"})
"""Annotation labels about the decision. Any other label is read as the right answer itself."""


AnnotatorKind = Literal["HUMAN", "LLM", "CODE"]


@dataclass(frozen=True)
class NewAnnotation:
    """A verdict on a span, to be written to Phoenix. An equal span, name and identifier is replaced."""

    span_id: str
    name: str
    kind: AnnotatorKind
    label: str | None
    metadata: Mapping[str, str]
    score: float | None = None
    identifier: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.span_id, self.name, self.identifier

    def as_json(self) -> dict[str, Any]:
        """As Phoenix's API takes it."""
        result = {"label": self.label, "score": self.score}
        return {
            "span_id": self.span_id,
            "name": self.name,
            "annotator_kind": self.kind,
            "result": {name: value for name, value in result.items() if value is not None},
            "metadata": dict(self.metadata),
            "identifier": self.identifier,
        }


@dataclass(frozen=True)
class SpanContract:
    """How one module's decisions are found and read.

    `inputs` maps each input field of the program to its attribute paths; the fields in `required` must be
    there, the others are empty where the span lacks them. `answers` does the same for the output fields: what
    the application decided. `annotation` is the name of the Phoenix span annotations that judge this module's
    answer. `confidence` is how sure the application was, from 0 to 1, `success` what came of the decision (absent:
    not known to have failed), and `quality` how good the outcome was, from 0 to 1. Without `confidence`, only what
    `success` says was good, or somebody reviewed, is learnt from.
    """

    span_name: str
    inputs: dict[str, tuple[str, ...]]
    required: tuple[str, ...]
    answers: dict[str, tuple[str, ...]]
    annotation: str
    confidence: tuple[str, ...] = ()
    success: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()
    review_sample: tuple[str, ...] = field(default=(REVIEW_SAMPLE,))

    @property
    def filter(self) -> str:
        """The Phoenix span filter that selects one span per decision."""
        return span_filter(self.span_name)

    @property
    def columns(self) -> tuple[str, ...]:
        """The span attributes to read, without duplicates, in a fixed order."""
        paths = [path for paths in (*self.inputs.values(), *self.answers.values()) for path in paths]
        paths += [*self.confidence, *self.success, *self.quality, *self.review_sample]
        return tuple(dict.fromkeys(path.partition(":")[0] for path in paths))


def span_filter(span_name: str) -> str:
    """Phoenix's filter expression for the spans of one name. Spans inside a decision have other names."""
    return f"name == {json.dumps(span_name)}"


def project_name(tenant_id: str) -> str:
    """The Phoenix project that holds a tenant's routing traces."""
    return PROJECT_TEMPLATE.format(tenant_id=validate_tenant_id(tenant_id))


_QUERY = ("routing.query", "query.text", "input.value:query")
_SUCCESS = ("routing.success", "output.value:success")

ROUTING = SpanContract(
    span_name=ROUTING_SPAN,
    inputs={
        "query": _QUERY,
        "modality": ("routing.modality", "query.modality_intent", "output.value:modality"),
        "entities": ("routing.entities", "routing.context:entities", "input.value:entities"),
        "relationships": ("routing.relationships", "routing.context:relationships", "input.value:relationships"),
    },
    required=("query",),
    answers={
        "agent": (
            "routing.chosen_agent",
            "routing.selected_agent",
            "output.value:chosen_agent",
            "output.value:recommended_agent",
            "output.value:agent",
        )
    },
    confidence=("routing.confidence", "output.value:confidence"),
    success=_SUCCESS,
    annotation="routing_annotation",
)

MODALITY = SpanContract(
    span_name=ROUTING_SPAN,
    inputs={"query": _QUERY},
    required=("query",),
    answers={"modality": ("routing.modality", "query.modality_intent", "output.value:modality")},
    confidence=("routing.modality_confidence", "routing.confidence", "output.value:confidence"),
    success=_SUCCESS,
    annotation="modality_annotation",
)

CROSS_MODAL = SpanContract(
    span_name=CROSS_MODAL_SPAN,
    inputs={
        "query": ("cross_modal.query", "input.value:query"),
        "modalities": ("cross_modal.detected_modalities", "input.value:detected_modalities"),
    },
    required=("query", "modalities"),
    answers={
        "fuse": ("cross_modal.fused", "output.value:fused"),
        "primary": ("cross_modal.primary", "output.value:primary"),
        "secondary": ("cross_modal.secondary", "output.value:secondary"),
    },
    confidence=("cross_modal.confidence", "output.value:confidence"),
    success=("cross_modal.success", "output.value:success"),
    quality=("cross_modal.quality", "output.value:quality"),
    annotation="cross_modal_annotation",
)
"""`detected_modalities` is a JSON list of `{"modality": ..., "confidence": ...}`, `fused` a boolean. An annotation's
score is the gain of fusing over not fusing, from -1 to 1."""

WORKFLOW = SpanContract(
    span_name=ORCHESTRATION_SPAN,
    inputs={"query": ("orchestration.query", "input.value:query")},
    required=("query",),
    answers={
        "agents": (
            "orchestration.execution_order",
            "orchestration.agent_sequence",
            "orchestration.agents_used",
            "output.value:agent_sequence",
        ),
        "pattern": ("orchestration.pattern", "output.value:pattern"),
    },
    confidence=("orchestration.confidence", "routing.confidence", "output.value:confidence"),
    success=("orchestration.success", "output.value:success"),
    annotation="workflow_annotation",
)
"""Agents are a JSON list, or text with commas between them."""
