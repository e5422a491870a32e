"""The span contract: which attributes of a Phoenix span hold a decision, and how feedback on it is written.

The reader, the sample traffic and an application's instrumentation all follow this contract. The reader tries attribute
paths in order and takes the first one that exists. `a.b` is a span attribute; `a.b:key` is `key` inside the JSON object
in the attribute `a.b` (OpenInference writes `input.value` and `output.value` that way).
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

# Span attribute: true if the application drew this request at random for review, before its outcome was known.
REVIEW_SAMPLE = "autoopt.review_sample"

# Span attribute: the program version that made the decision, or `BASELINE` if none was active.
PROGRAM_VERSION = "autoopt.program_version"

BASELINE = "baseline"

# Span attribute: the role of that version for the request: `active`, `CANARY` or `BASELINE`.
ARM = "autoopt.arm"

# The role of the version that gets the small fraction of requests while two versions serve side by side.
CANARY = "canary"

# Span attributes: the decision's tenant, its module, and the application's id of the request.
TENANT_ID = "autoopt.tenant_id"
MODULE = "autoopt.module"
REQUEST_ID = "autoopt.request_id"

# Phoenix project and span in which an application tells about once a minute how many decisions it made, and the
# attribute with the numbers: JSON `{tenant: {name of the decisions' spans: number}}`. They are hints. No tenant has a
# project of that name.
COUNTS_PROJECT = "autoopt-decision-counts"
COUNTS_SPAN = "autoopt.decision_counts"
COUNTS = "autoopt.decision_counts"

# Tenants that one such span tells about. An application with more sends several.
TENANTS_PER_COUNTS_SPAN = 200

# Annotation metadata (key and value) of a trace that was drawn at random, whatever its outcome.
RANDOM_SAMPLING = ("sampling", "random")

# The same for a trace that was drawn for a test, and on which the two compared programs disagree.
DISAGREEMENT_SAMPLING = ("sampling", "disagreement")

# Annotation metadata key of the right answer, if the label only marks the decision as wrong.
#
# An answer is written like its label: an agent's name, or a plan such as `search_agent > summary_agent` (one after the
# other) or `search_agent + report_agent` (side by side).
CORRECTION = "correction"

# Annotation labels about the decision. Any other label is the right answer itself.
CONFIRMING = frozenset({"correct", "correct_routing", "right"})
REFUTING = frozenset({"wrong", "wrong_routing", "incorrect"})
UNDECIDED = frozenset({"ambiguous", "insufficient_info", "unsure"})


AnnotatorKind = Literal["HUMAN", "LLM", "CODE"]


@dataclass(frozen=True)
class NewAnnotation:
    """A verdict on a span, to be written to Phoenix. It replaces an annotation with the same `key`."""

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
        """The annotation as Phoenix's API accepts it."""
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
    """How the reader finds and reads one module's decisions.

    `inputs` maps each input field of the program to its attribute paths. A span needs the fields in `required`; the
    others are empty if the span lacks them. `answers` maps the output fields, which hold the application's decision.
    `annotation` is the name of the Phoenix span annotations that review this module's answer.

    `confidence` is the application's confidence from 0 to 1, `success` the outcome of the decision (absent: not known
    to have failed), and `quality` the quality of the outcome from 0 to 1. Without `confidence`, only decisions with
    `success` or a review become examples.
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

# `detected_modalities` is a JSON list of `{"modality": ..., "confidence": ...}`, `fused` a boolean. An annotation's
# score is the gain of fusing over not fusing, from -1 to 1.
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

# Agents are a JSON list, or text with commas in between.
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
