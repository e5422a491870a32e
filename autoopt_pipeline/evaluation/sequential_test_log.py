"""Stores the steps of a candidate's sequential test (see `sequential_test`) with its versions.

A test is open while its last step awaits reviews or more traces, and its incumbent, model and labels are the same. It
also ends when the candidate's program has been rolled back or declined, under the name of any version.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from autoopt_pipeline.errors import PromotionConflict
from autoopt_pipeline.evaluation.cases import Judged, PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.sequential_test import Batch
from autoopt_pipeline.registry.promotion_blocks import promotion_block_reason
from autoopt_pipeline.registry.records import (
    DrawnTrace,
    SequentialTestStep,
    StoredBatch,
    StoredCase,
    StoredJudged,
    Verdict,
)
from autoopt_pipeline.registry.version_store import VersionStore

Draws = Literal["reviewed", "all"]

OPEN = frozenset({Verdict.INCONCLUSIVE, Verdict.AWAITING_REVIEWS})


@dataclass(frozen=True)
class SequentialTestConditions:
    """The incumbent, model and labels of a sequential test. Cases under different conditions must not be combined.

    `incumbent` is the active version. For a composed module without one, it names the programs of its parts.
    """

    incumbent: str | None
    lm: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class SequentialTest:
    """A sequential test: the candidate, its alpha, the queries that cannot be drawn any more, and its batches.

    `max_loss` is set if the candidate is cheaper, and may be promoted if it is not worse by more than that.
    `drawn` are the traces that await reviews, in the order of review; of their disagreements the first `known` had a
    label before, and `judge` is who judged them before people. `steps` is the number of the last step of any test, and
    `last_new` when traces were last drawn (UTC).
    """

    version: str
    conditions: SequentialTestConditions
    alpha: float
    max_loss: float | None
    draws: Draws
    seen: frozenset[str]
    batches: tuple[Batch, ...]
    drawn: tuple[DrawnTrace, ...]
    known: int
    judge: str | None
    steps: int
    began: datetime
    last_new: datetime

    @property
    def is_new(self) -> bool:
        """Whether no step of it is recorded yet."""
        return not self.batches and not self.drawn


def new_test(
    version: str, conditions: SequentialTestConditions, *, after: int, alpha: float, draws: Draws
) -> SequentialTest:
    """Return a test without traces. `after` is the last step of any test that the caller has read."""
    now = datetime.now(UTC)
    return SequentialTest(version, conditions, alpha, None, draws, frozenset(), (), (), 0, None, after, now, now)


def find_open_test(artifacts: VersionStore, conditions: SequentialTestConditions) -> SequentialTest | None:
    """Return the sequential test that is open under these conditions, or None."""
    steps = steps_of_open_test(artifacts)
    if not steps:
        return None
    begun = steps[0]
    if SequentialTestConditions(begun.incumbent, begun.lm, tuple(begun.labels)) != conditions:
        return None
    transitions, (manifests, _) = artifacts.transitions(), artifacts.list_versions()
    digest = next((manifest.program_sha256 for manifest in manifests if manifest.version == begun.version), "")
    if any(transition.to_version == begun.version for transition in transitions) or promotion_block_reason(
        artifacts, digest
    ):
        return None
    return SequentialTest(
        version=begun.version,
        conditions=conditions,
        alpha=begun.alpha,
        max_loss=begun.max_loss,
        draws=begun.draws,
        seen=frozenset(digest for step in steps for digest in step.seen),
        batches=tuple(batch_of(step.batch) for step in steps if step.batch),
        drawn=tuple(steps[-1].drawn),
        known=steps[-1].known,
        judge=steps[-1].judge,
        steps=steps[-1].sequence,
        began=begun.at,
        last_new=max(step.at for step in steps if step.seen or step.begins),
    )


def steps_of_open_test(artifacts: VersionStore) -> list[SequentialTestStep]:
    """Return the steps of the last test, oldest first, if its last step left it open; else none."""
    steps = artifacts.sequential_test()
    if not steps or steps[-1].verdict not in OPEN:
        return []
    begins = max((place for place, step in enumerate(steps) if step.begins), default=0)
    return steps[begins:]


def oldest_awaiting(artifacts: VersionStore) -> datetime | None:
    """Return the start (UTC) of the oldest trace that awaits a review, or None if none does."""
    steps = steps_of_open_test(artifacts)
    return min((trace.time for trace in steps[-1].drawn), default=None) if steps else None


def append_step(  # noqa: PLR0913 - keyword-only parts of one step
    artifacts: VersionStore,
    test: SequentialTest,
    verdict: Verdict,
    *,
    run_id: str,
    seen: Iterable[str] = (),
    drawn: Sequence[DrawnTrace] = (),
    known: int = 0,
    judge: str | None = None,
    batch: Batch | None = None,
) -> None:
    """Record traces that await reviews, or a batch with its verdict. `seen` are the normalized queries that were drawn.

    Raises `PromotionConflict` if another run recorded a step first.
    """
    step = SequentialTestStep(
        sequence=test.steps + 1,
        at=artifacts.clock(),
        run_id=run_id,
        version=test.version,
        incumbent=test.conditions.incumbent,
        lm=test.conditions.lm,
        labels=list(test.conditions.labels),
        alpha=test.alpha,
        max_loss=test.max_loss,
        begins=test.is_new,
        draws=test.draws,
        seen=digests(seen),
        drawn=list(drawn),
        known=known,
        judge=judge,
        batch=_stored(batch) if batch else None,
        verdict=verdict.value,
    )
    if not artifacts.add_sequential_test_step(step):
        raise PromotionConflict(
            f"{artifacts.tenant_id}/{artifacts.module}: another run has continued the sequential test meanwhile",
            "nothing is lost; the next run continues it",
        )


def digests(queries: Iterable[str]) -> list[str]:
    """Return digests of normalized queries, so that the log holds no text."""
    return sorted({hashlib.sha256(query.encode()).hexdigest()[:16] for query in queries})


def _stored(batch: Batch) -> StoredBatch:
    return StoredBatch(
        reviewed=[stored_case(case) for case in batch.reviewed],
        disagreements=batch.disagreements,
        known=batch.known,
        agreed=[stored_case(case) for case in batch.agreed],
        presumed=[stored_case(case) for case in batch.presumed],
    )


def stored_case(case: PairedCase) -> StoredCase:
    """Return a case as a step stores it."""
    return StoredCase(
        label=case.label,
        incumbent_score=case.incumbent.score,
        incumbent_label=case.incumbent.label,
        incumbent_confidence=case.incumbent.confidence,
        candidate_score=case.candidate.score,
        candidate_label=case.candidate.label,
        candidate_confidence=case.candidate.confidence,
        judged=StoredJudged(**asdict(case.judged)) if case.judged else None,
    )


def batch_of(stored: StoredBatch) -> Batch:
    """Return the stored batch of a step."""
    return Batch(
        tuple(map(case_of, stored.reviewed)),
        stored.disagreements,
        stored.known,
        tuple(map(case_of, stored.agreed)),
        tuple(map(case_of, stored.presumed)),
    )


def case_of(stored: StoredCase) -> PairedCase:
    """Return the stored case of a step."""
    return PairedCase(
        stored.label,
        ScoredAnswer(stored.incumbent_score, stored.incumbent_label, stored.incumbent_confidence),
        ScoredAnswer(stored.candidate_score, stored.candidate_label, stored.candidate_confidence),
        Judged(**stored.judged.model_dump()) if stored.judged else None,
    )
