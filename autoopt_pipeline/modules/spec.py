"""Core types of learning: modules, decisions and examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from autoopt_pipeline.errors import InvalidModule
from autoopt_pipeline.modules.coercion import number
from autoopt_pipeline.modules.redaction import Redact
from autoopt_pipeline.modules.redaction import redact as default_redact
from autoopt_pipeline.span_contract import SpanContract

if TYPE_CHECKING:
    import dspy


# Tolerance of scores beyond 0 and 1, because a sum of shares such as 0.7 + 0.2 + 0.1 is not exactly 1.
_ROUNDING = 1e-9

# Values of output fields by name, as JSON types: a program's answer, or the right answer.
Values = Mapping[str, Any]


class Provenance(StrEnum):
    """Source of a label, best first."""

    HUMAN = "human"
    JUDGE = "judge"
    OUTCOME = "outcome"


# How much an example counts in learning, by the source of its label.
WORTH = {Provenance.HUMAN: 1.0, Provenance.JUDGE: 0.9, Provenance.OUTCOME: 0.6}


@dataclass(frozen=True)
class Label:
    """One possible answer and its meaning."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class Example:
    """One decision of the application with its right answer.

    `right` maps output fields to their right values, and `label` names them in one word (see `ModuleSpec.label`), as
    the example's class. `independent` means that the trace was drawn independently of its outcome, so the label may
    judge a program; other labels may only train. `time` is the span's start, UTC. `assumed` holds likely values of
    fields without a known answer: a demo shows them because it must be complete, but they are never scored.
    """

    inputs: dict[str, str]
    right: dict[str, Any]
    label: str
    provenance: Provenance
    independent: bool
    time: datetime
    span_id: str
    trace_id: str
    assumed: dict[str, Any] = field(default_factory=dict)

    @property
    def query(self) -> str:
        return query_of(self.inputs)


def query_of(inputs: Values) -> str:
    """Return the text that identifies a request: its `query`, or all inputs without such a field."""
    return str(inputs.get("query") or "\n".join(str(value) for value in inputs.values()))


@dataclass(frozen=True)
class Annotation:
    """A verdict on one decision in Phoenix, by a person, a judge or code.

    The module defines the meaning of `score`; most use only the label. `made_in_ui` distinguishes a reviewer in
    Phoenix's UI from feedback that an application forwarded.
    """

    kind: str
    label: str | None
    metadata: dict[str, Any]
    updated_at: datetime
    made_in_ui: bool = False
    score: float | None = None


@dataclass(frozen=True)
class LoggedDecision:
    """One span of the application, with the columns of its module's contract and its annotations.

    For a composed module, `parts` maps its parts to their decisions in the same trace. `cut` names the attributes whose
    text was truncated before it reached Phoenix.
    """

    span_id: str
    trace_id: str
    time: datetime
    failed: bool
    attributes: dict[str, Any]
    annotations: tuple[Annotation, ...] = ()
    parts: Mapping[str, "LoggedDecision"] = field(default_factory=dict)
    cut: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ExampleSet:
    """The examples from decisions, the unusable decisions by reason, and the number of redacted examples.

    `malformed` counts the unusable decisions that break the span contract.
    """

    examples: tuple[Example, ...]
    unusable: dict[str, int] = field(default_factory=dict)
    malformed: int = 0
    redacted: int = 0


class ProgramBuilder(Protocol):
    def __call__(self, spec: "ModuleSpec", labels: Sequence[Label]) -> "dspy.Module": ...


class ExampleBuilder(Protocol):
    def __call__(
        self, spec: "ModuleSpec", labels: Sequence[Label], decisions: Sequence[LoggedDecision]
    ) -> ExampleSet: ...


@dataclass(frozen=True)
class Grading:
    """How answers are scored: `score` rates an answer by the right values (0 to 1), `label` names values in one word.

    `text` writes values as an annotator does, where that is more than the label. All receive the spec first. Fields
    that the right values lack are unknown and must not count.
    """

    score: Callable[["ModuleSpec", Values, Values], float]
    label: Callable[["ModuleSpec", Values], str]
    text: Callable[["ModuleSpec", Values], str] | None = None


@dataclass(frozen=True)
class ModuleSpec:
    """One kind of decision of every tenant's application that is optimized.

    `outputs` are the program's output fields except the confidence; the first one gives the label. `program`,
    `examples` and `grading` are import strings (`package.module:name`), so that listing modules does not import DSPy.
    `labels` are the possible answers; None means the tenant's agents. A composed module names its modules in `parts`,
    and its program has theirs as attributes of the same names.
    """

    name: str
    description: str
    contract: SpanContract
    outputs: tuple[str, ...]
    labels: tuple[Label, ...] | None
    program: str
    examples: str = "autoopt_pipeline.modules.labeling:build_examples"
    grading: str = "autoopt_pipeline.modules.scoring:EXACT"
    parts: tuple["ModuleSpec", ...] = ()
    scheduled_by_default: bool = True

    @property
    def output_field(self) -> str:
        return self.outputs[0]

    def build_program(self, labels: Sequence[Label]) -> "dspy.Module":
        """Return the unoptimized program, which is the module's baseline."""
        builder: ProgramBuilder = _load(self.program)
        return builder(self, labels)

    def build_examples(
        self, labels: Sequence[Label], decisions: Sequence[LoggedDecision], redact: Redact = default_redact
    ) -> ExampleSet:
        """Build examples with redacted inputs, so that no original text goes further."""
        builder: ExampleBuilder = _load(self.examples)
        built = builder(self, labels, decisions)
        clean = tuple(
            replace(example, inputs={name: redact(text) for name, text in example.inputs.items()})
            for example in built.examples
        )
        redacted = sum(before != after for before, after in zip(built.examples, clean, strict=True))
        return replace(built, examples=clean, redacted=redacted)

    def build_requests(
        self, labels: Sequence[Label], decisions: Sequence[LoggedDecision], redact: Redact = default_redact
    ) -> tuple[Example, ...]:
        """Build an example of every decision that can be read, whatever became of it, as if its answer were right.

        A composed module has none, because each of its parts would need a review.
        """
        if self.parts:
            return ()
        confirmed = [
            replace(decision, failed=False, annotations=(Annotation("HUMAN", "correct", {}, decision.time),))
            for decision in decisions
        ]
        built = self.build_examples(labels, confirmed, redact)
        return tuple(replace(example, provenance=Provenance.OUTCOME, independent=False) for example in built.examples)

    def score(self, right: Values, given: Values) -> float:
        """Score an answer from 0 to 1. Raises `InvalidModule` if the grading returns anything else."""
        grading: Grading = _load(self.grading)
        given_score = grading.score(self, right, given)
        score = number(float(given_score) if isinstance(given_score, bool) else given_score)
        shown = "no number" if score is None else score
        if score is None or not -_ROUNDING <= score <= 1 + _ROUNDING:
            raise InvalidModule(
                f"module {self.name}: its grading {self.grading} gives {shown} for an answer",
                "let it give a number from 0 to 1",
            )
        return min(max(score, 0.0), 1.0)

    def label(self, values: Values) -> str:
        """Name values in one word, for people and for counting."""
        grading: Grading = _load(self.grading)
        return grading.label(self, values)

    def answer_text(self, values: Values) -> str:
        """Write values as an annotator does; read as a review, the text gives the same values."""
        grading: Grading = _load(self.grading)
        return (grading.text or grading.label)(self, values)


@cache
def _load(import_string: str) -> Any:
    module, _, name = import_string.partition(":")
    return getattr(import_module(module), name)
