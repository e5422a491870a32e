"""Converts decisions to examples: the right answer, its source, and reasons why a decision is not usable."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoopt_pipeline.modules.coercion import as_text, boolean, number, parse_json, stripped
from autoopt_pipeline.modules.spec import (
    Annotation,
    Example,
    ExampleSet,
    Label,
    LoggedDecision,
    ModuleSpec,
    Provenance,
    Values,
)
from autoopt_pipeline.span_contract import (
    CONFIRMING,
    CORRECTION,
    DISAGREEMENT_SAMPLING,
    RANDOM_SAMPLING,
    REFUTING,
    UNDECIDED,
)

# Minimum confidence for an unreviewed decision that did not fail to become an outcome label (the seed's value).
MIN_OUTCOME_CONFIDENCE = 0.7

# Longest input to learn from. Longer ones would fill the prompts of all later calls.
MAX_INPUT_CHARS = 4000

# Kinds of annotators that count.
JUDGES = {"HUMAN": Provenance.HUMAN, "LLM": Provenance.JUDGE}


class Unusable(Exception):
    """A decision that yields no example. Its text is the reason to count it under.

    `malformed` means that the span breaks the contract, rather than just lacking a right answer.
    """

    def __init__(self, reason: str, *, malformed: bool = False) -> None:
        super().__init__(reason)
        self.malformed = malformed


def build_examples(spec: ModuleSpec, labels: Sequence[Label], decisions: Sequence[LoggedDecision]) -> ExampleSet:
    """Build the examples of a module that answers with one of its labels."""
    known = {label.name for label in labels}
    field = spec.output_field

    def build(decision: LoggedDecision) -> Example:
        inputs = read_inputs(spec, decision)
        answer = read_text(decision.attributes, spec.contract.answers[field])
        own = {field: answer} if answer else None
        right = find_right(spec, decision, own, lambda label: {field: label})
        if right.values[field] not in known:
            raise Unusable(f"{field} is not one of the current labels")
        return make_example(spec, decision, inputs, right)

    return collect_examples(decisions, build)


def collect_examples(decisions: Iterable[LoggedDecision], build: Callable[[LoggedDecision], Example]) -> ExampleSet:
    """Build one example per usable decision, and count the others by reason."""
    examples: list[Example] = []
    unusable: Counter[str] = Counter()
    malformed = 0
    for decision in decisions:
        try:
            examples.append(build(decision))
        except Unusable as reason:
            unusable[str(reason)] += 1
            malformed += reason.malformed
    return ExampleSet(tuple(examples), dict(sorted(unusable.items())), malformed)


@dataclass(frozen=True)
class GroundTruth:
    """The right values, their source, and whether the trace was drawn independently of its outcome."""

    values: Values
    provenance: Provenance
    independent: bool


def make_example(
    spec: ModuleSpec,
    decision: LoggedDecision,
    inputs: dict[str, str],
    right: GroundTruth,
    assumed: Values | None = None,
) -> Example:
    return Example(
        inputs,
        dict(right.values),
        spec.label(right.values),
        right.provenance,
        right.independent,
        decision.time,
        decision.span_id,
        decision.trace_id,
        dict(assumed or {}),
    )


def read_inputs(spec: ModuleSpec, decision: LoggedDecision) -> dict[str, str]:
    """Return all input fields as text. Optional fields are empty if the span lacks them."""
    check_whole(spec, decision)
    contract = spec.contract
    inputs = {}
    for name, paths in contract.inputs.items():
        value = read_attribute(decision.attributes, paths)
        if name in contract.required:
            if value is None or value == "":
                raise Unusable(f"no {name}", malformed=True)
            if not isinstance(value, str) or not value.strip():
                raise Unusable(f"{name} is no text", malformed=True)
        text = as_text(value)
        if text is None:
            raise Unusable(f"{name} cannot be written as text", malformed=True)
        if len(text) > MAX_INPUT_CHARS:
            raise Unusable(f"{name} is longer than {MAX_INPUT_CHARS} characters", malformed=True)
        inputs[name] = text
    return inputs


def check_whole(spec: ModuleSpec, decision: LoggedDecision) -> None:
    """Raise `Unusable` if an input was truncated, because its start is not the whole input."""
    if not decision.cut:
        return
    for name, paths in spec.contract.inputs.items():
        path, _ = _find_attribute(decision.attributes, paths)
        # Truncated JSON is unreadable. An absent optional field may not have been truncated.
        suspects = [path] if path else paths if name in spec.contract.required else ()
        if any(suspect.partition(":")[0] in decision.cut for suspect in suspects):
            raise Unusable(f"{name} was cut off (a limit on the length of attributes)", malformed=True)


def find_right(
    spec: ModuleSpec, decision: LoggedDecision, own: Values | None, from_label: Callable[[str], Values]
) -> GroundTruth:
    """Return the best available label (see `Provenance`). `own` is the application's answer, or None.

    `from_label` converts an annotator's text to values, and may raise `Unusable`.
    """
    judged = find_judged(spec, decision, lambda annotation: read_verdict(annotation, own, from_label))
    if judged:
        return judged
    if own is None:
        raise Unusable(f"no {spec.output_field}", malformed=True)
    check_outcome(spec, decision)
    return GroundTruth(own, Provenance.OUTCOME, False)


def find_judged(
    spec: ModuleSpec, decision: LoggedDecision, read: Callable[[Annotation], Values | None]
) -> GroundTruth | None:
    """Return the right answer of the best annotator: people first, of these the last. None without annotations.

    `read` returns the right values of an annotation, or None if it has none. It raises `Unusable` if the annotation
    rejects the answer without naming the right one.
    """
    for annotation in by_authority(decision.annotations):
        provenance = JUDGES.get(annotation.kind)
        values = read(annotation) if provenance else None
        if provenance and values is not None:
            return GroundTruth(values, provenance, is_review(spec, decision, annotation))
    return None


def by_authority(annotations: Iterable[Annotation]) -> list[Annotation]:
    """Sort annotations: people first, the latest of them first."""
    return sorted(annotations, key=lambda a: (a.kind != "HUMAN", -a.updated_at.timestamp()))


def read_verdict(
    annotation: Annotation,
    own: Values | None,
    from_label: Callable[[str], Values],
    opposite: Values | None = None,
) -> Values | None:
    """Return the right values from an annotation's label, or None without a label.

    `opposite` is the right answer if `own` is wrong, or None if there are several possibilities. Raises `Unusable` if
    the right answer is unknown, because a judge must not overrule a person who could not name it.
    """
    verdict = stripped(annotation.label)
    if verdict is None:
        return None
    verdict_word, correction = verdict.lower(), stripped(annotation.metadata.get(CORRECTION))
    if verdict_word in CONFIRMING:
        right = own
    elif verdict_word not in REFUTING | UNDECIDED:
        right = from_label(verdict)
    elif correction:
        right = from_label(correction)
    else:
        right = opposite if verdict_word in REFUTING else None
    if right is None:
        raise Unusable("judged wrong or unclear, with no right answer given")
    return right


def check_outcome(spec: ModuleSpec, decision: LoggedDecision) -> None:
    """Raise `Unusable` if the decision failed, or was not confident.

    If the contract has no confidence, the decision must be known to have succeeded.
    """
    success = boolean(read_attribute(decision.attributes, spec.contract.success))
    if decision.failed or success is False:
        raise Unusable("the request failed and nobody reviewed it")
    if not spec.contract.confidence:
        if success is None:
            raise Unusable("not known to have gone well, and nobody reviewed it")
        return
    confidence = number(read_attribute(decision.attributes, spec.contract.confidence))
    if confidence is None:
        raise Unusable("no confidence, and nobody reviewed it", malformed=True)
    if confidence < MIN_OUTCOME_CONFIDENCE:
        raise Unusable("unsure, and nobody reviewed it")


def is_review(spec: ModuleSpec, decision: LoggedDecision, annotation: Annotation) -> bool:
    """Return whether an annotation is part of a person's review of randomly drawn traces.

    It has a mark, or was made in Phoenix's UI on a trace that the application drew for review. An unmarked annotation
    from the API may be a user's complaint, even if the trace was drawn. A judge's word never counts: more of it makes
    its errors more certain, not smaller.
    """
    key, value = RANDOM_SAMPLING
    drawn = boolean(read_attribute(decision.attributes, spec.contract.review_sample))
    return annotation.kind == "HUMAN" and (
        annotation.metadata.get(key) == value or (drawn is True and annotation.made_in_ui)
    )


def is_of_disagreement(annotation: Annotation) -> bool:
    """Return whether a person was asked for this review because two programs answer differently."""
    key, value = DISAGREEMENT_SAMPLING
    return annotation.kind == "HUMAN" and annotation.metadata.get(key) == value


def read_attribute(attributes: Mapping[str, Any], paths: Sequence[str]) -> Any:
    """Return the value at the first path that is present (see `span_contract`), or None."""
    return _find_attribute(attributes, paths)[1]


def _find_attribute(attributes: Mapping[str, Any], paths: Sequence[str]) -> tuple[str | None, Any]:
    for path in paths:
        name, _, key = path.partition(":")
        value = attributes.get(name)
        if key and value is not None:
            value = _json_field(value, key)
        if value is not None and not (isinstance(value, float) and math.isnan(value)):
            return path, value
    return None, None


def _json_field(value: Any, key: str) -> Any:
    if isinstance(value, str):
        value = parse_json(value)
    return value.get(key) if isinstance(value, Mapping) else None


def read_text(attributes: Mapping[str, Any], paths: Sequence[str]) -> str | None:
    """Return the text at the first path that is present, or None if it is absent or not text."""
    return stripped(read_attribute(attributes, paths))
