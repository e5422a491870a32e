"""The nouns of learning: what a module is, and what an example is."""

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


_ROUNDING = 1e-9
"""How far a score may be beyond 0 or 1: a sum of shares such as 0.7 + 0.2 + 0.1 is not exactly 1."""

Values = Mapping[str, Any]
"""Values of output fields by name, as JSON knows them: what a program answers, or should have."""


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

    `right` holds the right values of the output fields, and `label` is what they come to in one word (see
    `ModuleSpec.label`): the class of the example where classes are counted. `independent` says that the label
    was given to a trace drawn without regard to its outcome, so that it may judge a program; other labels may
    only train one. `time` is the span's start, UTC. `assumed` holds likely values of output fields that nobody said
    are right: a demo shows them, because it must be complete, and no answer is judged by them.
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
    """The text that tells one request from another: its query, or all inputs where no field is called so."""
    return str(inputs.get("query") or "\n".join(str(value) for value in inputs.values()))


@dataclass(frozen=True)
class Annotation:
    """A verdict on one decision, as a person, a judge or code left it in Phoenix.

    What `score` means is up to the module; most read the label only.
    `made_in_ui` tells a reviewer at Phoenix's own pages from feedback that an application passed on.
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

    Of a composed module, `parts` holds the decisions of its parts in the same trace, by module name. `cut` names the
    attributes whose text was cut off before it came to Phoenix.
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
    """The examples that decisions yielded, how many yielded none, by reason, and how many had text taken out.

    `malformed` counts those of the unusable that are not what the contract promises.
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
    """How answers are judged: `score` from 0 to 1 of given values against right ones, and the word they come to.

    Both get the spec first. Fields that the right values lack are not known, and must not count.
    """

    score: Callable[["ModuleSpec", Values, Values], float]
    label: Callable[["ModuleSpec", Values], str]


@dataclass(frozen=True)
class ModuleSpec:
    """What is optimized: one kind of decision that every tenant's application makes.

    `outputs` are the fields that the program answers beside its confidence, the one that gives the label first.
    `program`, `examples` and `grading` are import strings (`package.module:name`), so that listing modules never
    imports DSPy. `labels` are the answers a program may give; None means the tenant's agents. A module that is
    composed of others names them in `parts`, and its program holds theirs as attributes of their names.
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
        """The unoptimized program, the module's baseline."""
        builder: ProgramBuilder = _load(self.program)
        return builder(self, labels)

    def build_examples(
        self, labels: Sequence[Label], decisions: Sequence[LoggedDecision], redact: Redact = default_redact
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

    def score(self, right: Values, given: Values) -> float:
        """How right the given values are, from 0 to 1. Raises `InvalidModule` where the grading says something else."""
        grading: Grading = _load(self.grading)
        given_score = grading.score(self, right, given)
        score = number(float(given_score) if isinstance(given_score, bool) else given_score)
        said = "no number" if score is None else score
        if score is None or not -_ROUNDING <= score <= 1 + _ROUNDING:
            raise InvalidModule(
                f"module {self.name}: its grading {self.grading} gives {said} for an answer",
                "let it give a number from 0 to 1",
            )
        return min(max(score, 0.0), 1.0)

    def label(self, values: Values) -> str:
        """What values come to in one word, for people and for counting."""
        grading: Grading = _load(self.grading)
        return grading.label(self, values)


@cache
def _load(import_string: str) -> Any:
    module, _, name = import_string.partition(":")
    return getattr(import_module(module), name)
