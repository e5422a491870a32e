"""A person's review, written to Phoenix, where all reviews are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoopt_pipeline.errors import InvalidReview
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Annotation
from autoopt_pipeline.reviews.queue import Question, ReviewQueue
from autoopt_pipeline.span_contract import DISAGREEMENT_SAMPLING, NewAnnotation
from autoopt_pipeline.text import one_line
from autoopt_pipeline.traces.client import Phoenix

CANNOT_TELL, BOTH_FINE = "unsure", "ambiguous"

# Metadata of a review: for which candidate its trace was drawn, and what the reviewer noted.
CANDIDATE, NOTE = "candidate", "note"

_MAX_NOTE, _MAX_NAME = 500, 200


def write_review(phoenix: Phoenix, question: Question, answer: str, *, reviewer: str, note: str = "") -> None:
    """Store what a reviewer says is right; the same reviewer's earlier review of the trace is replaced.

    Raises `InvalidReview` if the module cannot read the answer, and what `Phoenix` raises.
    """
    if not question.accepts(answer):
        raise InvalidReview(
            f"{question.tenant_id}/{question.module}: {one_line(answer, length=60)!r} is no answer of this module",
            f"give one of {', '.join(label.name for label in question.labels)}, or {CANNOT_TELL}",
        )
    metadata = dict([DISAGREEMENT_SAMPLING]) | {CANDIDATE: question.version}
    phoenix.annotate(
        [
            NewAnnotation(
                span_id=question.trace.span_id,
                name=get_module(question.module).contract.annotation,
                kind="HUMAN",
                label=answer,
                metadata=metadata | ({NOTE: note[:_MAX_NOTE]} if note else {}),
                identifier=reviewer[:_MAX_NAME],
            )
        ]
    )


@dataclass(frozen=True)
class Agreement:
    """How often the last two reviewers of a trace agree, and Cohen's kappa: 1 is always, 0 is as often as by chance."""

    traces: int
    agreed: int
    kappa: float | None


def agreement(queue: ReviewQueue) -> Agreement:
    """Compare the last two reviews of each trace that has several (Cohen, Educ Psychol Meas 1960)."""
    pairs = [_last_two(reviews) for reviews in queue.reviews.values() if len(reviews) > 1]
    agreed = sum(first == second for first, second in pairs)
    if not pairs:
        return Agreement(0, 0, None)
    answers = {answer for pair in pairs for answer in pair}
    by_chance = (
        sum(sum(pair[0] == answer for pair in pairs) * sum(pair[1] == answer for pair in pairs) for answer in answers)
        / len(pairs) ** 2
    )
    kappa = None if by_chance == 1 else (agreed / len(pairs) - by_chance) / (1 - by_chance)
    return Agreement(len(pairs), agreed, kappa)


def _last_two(reviews: Sequence[Annotation]) -> tuple[str, str]:
    first, second = reviews[-2:]
    return (first.label or "").strip(), (second.label or "").strip()
