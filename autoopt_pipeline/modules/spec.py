"""The nouns of learning: what a module is, and what an example is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from autoopt_pipeline.contract import SpanContract
from autoopt_pipeline.modules.redaction import Redact
from autoopt_pipeline.modules.redaction import redact as default_redact

if TYPE_CHECKING:
    import dspy


class Provenance(StrEnum):
    """Where a label comes from, best first."""

    HUMAN = "human"
    JUDGE = "judge"
    OUTCOME = "outcome"


@dataclass(frozen=True)
class Label:
    """One possible answer, with what it stands for."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class Example:
    """One decision of the application with the answer it should have been.

    `independent` says that the label was given to a trace drawn without regard to its outcome, so that it
    may judge a program; other labels may only train one. `time` is the span's start, UTC.
    """

    inputs: dict[str, str]
    label: str
    provenance: Provenance
    independent: bool
    time: datetime
    span_id: str
    trace_id: str

    @property
    def query(self) -> str:
        return self.inputs["query"]


@dataclass(frozen=True)
class Annotation:
    """A verdict on one decision, as a person, a judge or code left it in Phoenix.

    `made_in_ui` tells a reviewer at Phoenix's own pages from feedback that an application passed on.
    """

    kind: str
    label: str | None
    metadata: dict[str, Any]
    updated_at: datetime
    made_in_ui: bool = False


@dataclass(frozen=True)
class Decision:
    """One span of the application, with the columns of its module's contract and its annotations."""

    span_id: str
    trace_id: str
    time: datetime
    failed: bool
    attributes: dict[str, Any]
    annotations: tuple[Annotation, ...] = ()


@dataclass(frozen=True)
class ExampleSet:
    """The examples that decisions yielded, how many yielded none, by reason, and how many had text taken out."""

    examples: tuple[Example, ...]
    unusable: dict[str, int] = field(default_factory=dict)
    redacted: int = 0


class ProgramBuilder(Protocol):
    def __call__(self, labels: Sequence[Label]) -> "dspy.Module": ...


class ExampleBuilder(Protocol):
    def __call__(self, spec: "ModuleSpec", labels: Sequence[Label], decisions: Sequence[Decision]) -> ExampleSet: ...


@dataclass(frozen=True)
class ModuleSpec:
    """What is optimized: one kind of decision that every tenant's application makes.

    `program` and `examples` are import strings (`package.module:function`), so that listing modules never
    imports DSPy. `labels` are the answers a program may give; None means the tenant's agents.
    """

    name: str
    description: str
    contract: SpanContract
    output_field: str
    labels: tuple[Label, ...] | None
    program: str
    examples: str = "autoopt_pipeline.modules.examples:build_examples"
    scheduled_by_default: bool = True

    def build_program(self, labels: Sequence[Label]) -> "dspy.Module":
        """The unoptimized program, the module's baseline."""
        builder: ProgramBuilder = _load(self.program)
        return builder(labels)

    def build_examples(
        self, labels: Sequence[Label], decisions: Sequence[Decision], redact: Redact = default_redact
    ) -> ExampleSet:
        """Examples with their inputs redacted, so that no text gets further as it was."""
        builder: ExampleBuilder = _load(self.examples)
        found = builder(self, labels, decisions)
        clean = tuple(
            replace(example, inputs={name: redact(text) for name, text in example.inputs.items()})
            for example in found.examples
        )
        redacted = sum(before != after for before, after in zip(found.examples, clean, strict=True))
        return replace(found, examples=clean, redacted=redacted)


def _load(import_string: str) -> Any:
    module, _, name = import_string.partition(":")
    return getattr(import_module(module), name)
