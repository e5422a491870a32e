"""Scores single decisions in production."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from statistics import fmean

from autoopt_pipeline.modules.coercion import boolean, number, stripped
from autoopt_pipeline.modules.labeling import JUDGES, by_authority, is_of_disagreement, read_attribute
from autoopt_pipeline.modules.spec import Annotation, Label, LoggedDecision, ModuleSpec, Provenance, Values
from autoopt_pipeline.span_contract import CONFIRMING, CORRECTION, REFUTING, UNDECIDED


@dataclass(frozen=True)
class LiveOutcome:
    """Score of a decision from 0 to 1, since when it is known, and when the decision was made (UTC).

    `source` says from whom it is known; that of a composed module's decision is its first part's.
    """

    known_at: datetime
    decided_at: datetime
    score: float
    source: Provenance = Provenance.OUTCOME


def live_outcome(
    spec: ModuleSpec, labels: Sequence[Label], decision: LoggedDecision, *, judges: bool = True
) -> LiveOutcome | None:
    """Return the score from people and judges, else from the request's outcome. None if it is unknown.

    Without `judges`, annotations of language models do not count. Nor does a review of a disagreement: where two
    programs differ, each is wrong more often, so such outcomes would count against whichever of them served.
    Unlike in examples, complaints count, because they may come from either of two versions that serve side by side. So
    do verdicts without the right answer. The score of a composed module is the mean of its parts.
    """
    if spec.parts:
        parts = [
            outcome
            for part in spec.parts
            if (own := decision.parts.get(part.name))
            and (outcome := live_outcome(part, part.labels or labels, own, judges=judges))
        ]
        if not parts:
            return None
        known_at = max(part.known_at for part in parts)
        return LiveOutcome(known_at, decision.time, fmean(part.score for part in parts), parts[0].source)
    for annotation in by_authority(decision.annotations):
        counts = annotation.kind in JUDGES if judges else annotation.kind == "HUMAN"
        if (
            counts
            and not is_of_disagreement(annotation)
            and (score := _judged(spec, labels, decision, annotation)) is not None
        ):
            return LiveOutcome(annotation.updated_at, decision.time, score, JUDGES[annotation.kind])
    score = _became(spec, decision)
    return None if score is None else LiveOutcome(decision.time, decision.time, score)


def _judged(
    spec: ModuleSpec, labels: Sequence[Label], decision: LoggedDecision, annotation: Annotation
) -> float | None:
    """Return the score that an annotation implies, or None."""
    verdict = (stripped(annotation.label) or "").lower()
    if verdict in UNDECIDED:
        return None
    if verdict in CONFIRMING:
        return 1.0
    if verdict in REFUTING and not stripped(annotation.metadata.get(CORRECTION)):
        return 0.0
    right = _right(spec, labels, decision, annotation)
    # Read the application's own answer as if it were confirmed, in the form in which it would be learnt.
    own = _right(spec, labels, decision, replace(annotation, label="correct", metadata={}, score=None))
    return None if right is None or own is None else spec.score(right, own)


def _right(
    spec: ModuleSpec, labels: Sequence[Label], decision: LoggedDecision, annotation: Annotation
) -> Values | None:
    built = spec.build_examples(labels, [replace(decision, annotations=(annotation,))], redact=str)
    return built.examples[0].right if built.examples else None


def _became(spec: ModuleSpec, decision: LoggedDecision) -> float | None:
    success = boolean(read_attribute(decision.attributes, spec.contract.success))
    if decision.failed or success is False:
        return 0.0
    quality = number(read_attribute(decision.attributes, spec.contract.quality))
    if quality is not None:
        return min(max(quality, 0.0), 1.0)
    return 1.0 if success else None
