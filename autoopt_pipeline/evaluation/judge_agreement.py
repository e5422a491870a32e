"""How often people agree with a judge, by which it may spare them reviews. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoopt_pipeline.evaluation.cases import UNDECIDED_CLASS, PairedCase
from autoopt_pipeline.evaluation.sequential_test_log import batch_of
from autoopt_pipeline.registry.records import SequentialTestStep

# Reviews by which a judge is known, the last of which count, and how often it has to agree with them. Below, its word
# asks for more traces than it saves reviews (bench/README.md).
MIN_REVIEWS, LAST_REVIEWS, MIN_AGREEMENT = 20, 100, 0.9


@dataclass(frozen=True)
class JudgeAgreement:
    """How often people agree with a judge on which program a disagreement favours.

    `by_class` has the agreed and all reviews of each right class.
    """

    judge: str
    reviews: int
    agreed: int
    by_class: Mapping[str, tuple[int, int]]

    @property
    def may_spare_reviews(self) -> bool:
        return self.reviews >= MIN_REVIEWS and self.agreed >= MIN_AGREEMENT * self.reviews

    def __str__(self) -> str:
        return f"people agree with {self.judge} on {self.agreed} of {self.reviews} disagreements"


def agreement_with(judge: str, steps: Iterable[SequentialTestStep]) -> JudgeAgreement:
    """Compare the judge with people on the last disagreements that both have judged. `steps` are the oldest first."""
    batches = (batch_of(step.batch) for step in steps if step.batch and step.judge == judge)
    both = [case for batch in batches for case in batch.reviewed if _judged_by_both(case)][-LAST_REVIEWS:]
    agreed = [case for case in both if case.judged and _sign(case.judged.difference) == _sign(case.difference)]
    counts, hits = Counter(case.label for case in both), Counter(case.label for case in agreed)
    by_class = {label: (hits[label], count) for label, count in sorted(counts.items())}
    return JudgeAgreement(judge, len(both), len(agreed), by_class)


def last_agreement(steps: Sequence[SequentialTestStep]) -> JudgeAgreement | None:
    """Return the agreement with the judge that was asked last, or None if none ever was."""
    judge = next((step.judge for step in reversed(steps) if step.judge), None)
    return agreement_with(judge, steps) if judge else None


def _judged_by_both(case: PairedCase) -> bool:
    return case.judged is not None and case.judged.asked and case.label != UNDECIDED_CLASS


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)
