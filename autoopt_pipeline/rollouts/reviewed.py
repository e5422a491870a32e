"""Reads what people say about the disagreements of a rollout's two versions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from autoopt_pipeline.modules.labeling import is_of_disagreement
from autoopt_pipeline.modules.spec import Example, Label, LoggedDecision, ModuleSpec, Provenance
from autoopt_pipeline.registry.records import DrawnTrace, StoredAnswer
from autoopt_pipeline.rollouts.analysis import ReviewComparison


def compare_by_reviews(
    spec: ModuleSpec, labels: Sequence[Label], asked: Sequence[DrawnTrace], decisions: Mapping[str, LoggedDecision]
) -> ReviewComparison:
    """Compare both versions on the disagreements that people have reviewed, as far as the order of review goes.

    Only those before the first one without a review count, because another order could depend on the answers. Only
    reviews that were asked for count: a user who praises an answer praises the version that served. Who cannot tell
    favours neither version. `decisions` are by span; a trace that is not among them is gone, and favours neither.
    """
    gains: list[float] = []
    for trace in asked:
        decision = decisions.get(trace.span_id)
        if decision and not is_reviewed(decision):
            break
        example = _reviewed(spec, labels, decision) if decision else None
        gains.append(_gain(spec, trace, example) if example else 0.0)
    waiting = (decisions.get(trace.span_id) for trace in asked)
    return ReviewComparison(tuple(gains), sum(not is_reviewed(decision) for decision in waiting if decision))


def is_reviewed(decision: LoggedDecision) -> bool:
    """Return whether a person was asked about this decision and has answered."""
    return any(map(is_of_disagreement, decision.annotations))


def _reviewed(spec: ModuleSpec, labels: Sequence[Label], decision: LoggedDecision) -> Example | None:
    asked_for = replace(decision, annotations=tuple(filter(is_of_disagreement, decision.annotations)))
    built = spec.build_examples(labels, [asked_for], redact=str)
    return next((example for example in built.examples if example.provenance is Provenance.HUMAN), None)


def _gain(spec: ModuleSpec, trace: DrawnTrace, example: Example) -> float:
    return _score(spec, example, trace.candidate) - _score(spec, example, trace.incumbent)


def _score(spec: ModuleSpec, example: Example, answer: StoredAnswer) -> float:
    return 0.0 if answer.values is None else spec.score(example.right, answer.values)
