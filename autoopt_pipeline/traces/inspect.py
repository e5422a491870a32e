"""Shows people how a module reads a tenant's decisions: counts, and single decisions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from autoopt_pipeline.modules.coercion import as_text
from autoopt_pipeline.modules.labeling import read_attribute
from autoopt_pipeline.modules.redaction import Redact
from autoopt_pipeline.modules.spec import Example, ExampleSet, Label, LoggedDecision, ModuleSpec, Provenance


@dataclass(frozen=True)
class Survey:
    """Number of decisions in a window, what they yield, and why others yield nothing.

    `independent` counts the examples that may judge a program, and `malformed` the decisions that break the span
    contract. `oldest` and `newest` are start times of decisions, UTC; None without decisions.
    """

    decisions: int
    examples: int
    provenance: dict[str, int]
    independent: int
    labels: dict[str, int]
    unusable: dict[str, int]
    malformed: int
    redacted: int
    oldest: datetime | None
    newest: datetime | None


def survey(decisions: Sequence[LoggedDecision], built: ExampleSet) -> Survey:
    """Count the results of a module's `build_examples` for these decisions, most frequent first."""
    times = [decision.time for decision in decisions]
    provenance = Counter(example.provenance.value for example in built.examples)
    return Survey(
        decisions=len(decisions),
        examples=len(built.examples),
        provenance={kind.value: provenance[kind.value] for kind in Provenance},
        independent=sum(example.independent for example in built.examples),
        labels=dict(Counter(example.label for example in built.examples).most_common()),
        unusable=dict(Counter(built.unusable).most_common()),
        malformed=built.malformed,
        redacted=built.redacted,
        oldest=min(times, default=None),
        newest=max(times, default=None),
    )


@dataclass(frozen=True)
class AsRead:
    """One decision as a module reads it: its example, or why it has none. Text is redacted.

    `answer` is the application's decision by output field; a field that the span lacks is empty.
    """

    decision: LoggedDecision
    inputs: dict[str, str]
    answer: dict[str, str]
    example: Example | None
    unusable: str | None


def as_read(
    spec: ModuleSpec, labels: Sequence[Label], decisions: Sequence[LoggedDecision], redact: Redact, *, newest: int
) -> list[AsRead]:
    """Return the newest decisions, last first, as a run would read them."""
    # All are read, because a decision may be usable only together with others.
    built = spec.build_examples(labels, decisions, redact)
    examples = {example.span_id: example for example in built.examples}
    return [
        _as_read(spec, labels, decision, examples.get(decision.span_id), redact)
        for decision in reversed(decisions[-newest:])
    ]


def _as_read(
    spec: ModuleSpec, labels: Sequence[Label], decision: LoggedDecision, example: Example | None, redact: Redact
) -> AsRead:
    answer = _answers(spec, decision, redact)
    if example:
        return AsRead(decision, example.inputs, answer, example, None)
    # A set only has counts of reasons, so this decision is read once more alone.
    reasons = spec.build_examples(labels, [decision], redact).unusable
    inputs = _texts(decision, spec.contract.inputs, redact)
    return AsRead(decision, inputs, answer, None, next(iter(reasons), "not usable beside the others"))


def _answers(spec: ModuleSpec, decision: LoggedDecision, redact: Redact) -> dict[str, str]:
    if not spec.parts:
        return _texts(decision, spec.contract.answers, redact)
    part_decisions = [(part, decision.parts[part.name]) for part in spec.parts if part.name in decision.parts]
    return {
        name: text
        for part, part_decision in part_decisions
        for name, text in _answers(part, part_decision, redact).items()
    }


def _texts(decision: LoggedDecision, fields: dict[str, tuple[str, ...]], redact: Redact) -> dict[str, str]:
    read = {name: as_text(read_attribute(decision.attributes, paths)) for name, paths in fields.items()}
    return {name: redact(text or "") for name, text in read.items()}
