"""From decisions to examples: which answer was right, who says so, and what cannot be used."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from autoopt_pipeline.contract import CONFIRMING, CORRECTION, RANDOM_SAMPLING, REFUTING, UNDECIDED
from autoopt_pipeline.modules.spec import (
    Annotation,
    Decision,
    Example,
    ExampleSet,
    Label,
    ModuleSpec,
    Provenance,
)

MIN_OUTCOME_CONFIDENCE = 0.7
"""Least confidence at which an unreviewed, not failed decision counts as an outcome label (the seed's value)."""

MAX_INPUT_CHARS = 4000
"""Longest input that is learnt from; longer ones would fill the prompt of every later call."""

_JUDGES = {"HUMAN": Provenance.HUMAN, "LLM": Provenance.JUDGE}


class Unusable(Exception):
    """A decision that yields no example; its text is the reason to count it under."""


def build_examples(spec: ModuleSpec, labels: Sequence[Label], decisions: Sequence[Decision]) -> ExampleSet:
    """One example per usable decision. A decision's label is the best one there is (see `Provenance`)."""
    known = {label.name for label in labels}
    examples: list[Example] = []
    unusable: Counter[str] = Counter()
    for decision in decisions:
        try:
            examples.append(_build_example(spec, known, decision))
        except Unusable as reason:
            unusable[str(reason)] += 1
    return ExampleSet(tuple(examples), dict(sorted(unusable.items())))


def _build_example(spec: ModuleSpec, known: set[str], decision: Decision) -> Example:
    contract = spec.contract
    inputs = {}
    for name, paths in contract.inputs.items():
        value = read_attribute(decision.attributes, paths)
        if value is None or value == "":
            if name in contract.required:
                raise Unusable(f"no {name}")
            continue
        if not isinstance(value, str) or not value.strip():
            raise Unusable(f"{name} is no text")
        if len(value) > MAX_INPUT_CHARS:
            raise Unusable(f"{name} is longer than {MAX_INPUT_CHARS} characters")
        inputs[name] = value
    label, provenance, independent = _label(spec, decision)
    if label not in known:
        raise Unusable(f"{spec.output_field} is not one of the current labels")
    return Example(inputs, label, provenance, independent, decision.time, decision.span_id, decision.trace_id)


def _label(spec: ModuleSpec, decision: Decision) -> tuple[str, Provenance, bool]:
    """The right answer, who says so, and whether that was said of a trace drawn without regard to its outcome."""
    answer = _text(read_attribute(decision.attributes, spec.contract.answer))
    by_worth = sorted(decision.annotations, key=lambda a: (a.kind != "HUMAN", -a.updated_at.timestamp()))
    refuted = False
    for annotation in by_worth:
        provenance = _JUDGES.get(annotation.kind)
        if provenance is None or annotation.label is None:
            continue
        right = _right_answer(annotation, answer)
        if right is not None:
            return right, provenance, _is_review(spec, decision, annotation)
        # The best annotator has spoken: a judge must not overrule a person who could not name the right answer.
        refuted = True
        break
    if refuted:
        raise Unusable("judged wrong or unclear, with no right answer given")
    if answer is None:
        raise Unusable(f"no {spec.output_field}")
    if decision.failed or read_attribute(decision.attributes, spec.contract.success) is False:
        raise Unusable("the request failed and nobody reviewed it")
    confidence = read_attribute(decision.attributes, spec.contract.confidence)
    if isinstance(confidence, bool) or not isinstance(confidence, int | float) or not math.isfinite(confidence):
        raise Unusable("no confidence, and nobody reviewed it")
    if confidence < MIN_OUTCOME_CONFIDENCE:
        raise Unusable("unsure, and nobody reviewed it")
    return answer, Provenance.OUTCOME, False


def _is_review(spec: ModuleSpec, decision: Decision, annotation: Annotation) -> bool:
    """Whether an annotation belongs to a review of traces drawn at random.

    Either it says so, or it was made at Phoenix's own pages on a trace that the application drew for review.
    What comes over the API without a word may be a user's complaint, also where the trace was drawn.
    """
    key, value = RANDOM_SAMPLING
    drawn = read_attribute(decision.attributes, spec.contract.review_sample) is True
    return annotation.metadata.get(key) == value or (drawn and annotation.made_in_ui)


def _right_answer(annotation: Annotation, answer: str | None) -> str | None:
    verdict = (annotation.label or "").strip()
    if verdict.lower() in CONFIRMING:
        return answer
    if verdict.lower() in REFUTING | UNDECIDED:
        return _text(annotation.metadata.get(CORRECTION))
    return verdict or None


def read_attribute(attributes: Mapping[str, Any], paths: Sequence[str]) -> Any:
    """The value at the first path that is present (see `contract`), or None."""
    for path in paths:
        name, _, key = path.partition(":")
        value = attributes.get(name)
        if key and value is not None:
            value = _json_field(value, key)
        if value is not None and not (isinstance(value, float) and math.isnan(value)):
            return value
    return None


def _json_field(value: Any, key: str) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value.get(key) if isinstance(value, Mapping) else None


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None
