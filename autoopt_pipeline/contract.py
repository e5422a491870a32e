"""The span contract: where a decision of the application stands in Phoenix, and how feedback on it is written.

The reader, the sample traffic and an application's instrumentation all go by this file. Attribute paths are
tried in order and the first one present wins. `a.b` is a span attribute; `a.b:key` is `key` inside the JSON
object that the attribute `a.b` holds (OpenInference writes `input.value` and `output.value` that way).
"""

import json
from dataclasses import dataclass, field

from autoopt_pipeline.tenant_id import validate_tenant_id

PROJECT_TEMPLATE = "{tenant_id}-cogniverse-routing"

ROUTING_SPAN = "cogniverse.routing"

REVIEW_SAMPLE = "autoopt.review_sample"
"""Span attribute, true when the application drew this request at random for review, before its outcome was known."""

PROGRAM_VERSION = "autoopt.program_version"
"""Span attribute: the program version that made the decision."""

RANDOM_SAMPLING = ("sampling", "random")
"""Annotation metadata that says: this trace was drawn at random, whatever its outcome."""

CORRECTION = "correction"
"""Annotation metadata key that holds the right answer when the label says only that the decision was wrong."""

CONFIRMING = frozenset({"correct", "correct_routing", "right"})
REFUTING = frozenset({"wrong", "wrong_routing", "incorrect"})
UNDECIDED = frozenset({"ambiguous", "insufficient_info", "unsure"})
"""Annotation labels about the decision. Any other label is read as the right answer itself."""


@dataclass(frozen=True)
class SpanContract:
    """How one module's decisions are found and read.

    `inputs` maps each input field of the program to its attribute paths; the fields in `required` must be
    there. `answer` is what the application decided, `success` what came of it (absent: not known to have
    failed). `annotation` is the name of the Phoenix span annotations that judge this module's answer.
    """

    span_name: str
    inputs: dict[str, tuple[str, ...]]
    required: tuple[str, ...]
    answer: tuple[str, ...]
    confidence: tuple[str, ...]
    annotation: str
    success: tuple[str, ...] = ()
    review_sample: tuple[str, ...] = field(default=(REVIEW_SAMPLE,))

    @property
    def filter(self) -> str:
        """The Phoenix span filter that selects one span per decision."""
        return span_filter(self.span_name)

    @property
    def columns(self) -> tuple[str, ...]:
        """The span attributes to read, without duplicates, in a fixed order."""
        paths = [p for paths in self.inputs.values() for p in paths]
        paths += [*self.answer, *self.confidence, *self.success, *self.review_sample]
        return tuple(dict.fromkeys(path.partition(":")[0] for path in paths))


def span_filter(span_name: str) -> str:
    """Phoenix's filter expression for the spans of one name. Spans inside a decision have other names."""
    return f"name == {json.dumps(span_name)}"


def project_name(tenant_id: str) -> str:
    """The Phoenix project that holds a tenant's routing traces."""
    return PROJECT_TEMPLATE.format(tenant_id=validate_tenant_id(tenant_id))


QUERY_PATHS = ("routing.query", "query.text", "input.value:query")

ROUTING = SpanContract(
    span_name=ROUTING_SPAN,
    inputs={"query": QUERY_PATHS},
    required=("query",),
    answer=(
        "routing.chosen_agent",
        "routing.selected_agent",
        "output.value:chosen_agent",
        "output.value:recommended_agent",
        "output.value:agent",
    ),
    confidence=("routing.confidence", "output.value:confidence"),
    success=("routing.success", "output.value:success"),
    annotation="routing_annotation",
)

MODALITY = SpanContract(
    span_name=ROUTING_SPAN,
    inputs={"query": QUERY_PATHS},
    required=("query",),
    answer=("routing.modality", "query.modality_intent", "output.value:modality"),
    confidence=("routing.modality_confidence", "routing.confidence", "output.value:confidence"),
    success=("routing.success", "output.value:success"),
    annotation="modality_annotation",
)
