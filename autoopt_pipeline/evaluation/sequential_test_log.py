"""Stores the steps of an inconclusive candidate's sequential test (see `sequential_test`) with its versions.

A sequential test is open while its last step is `inconclusive` and its incumbent, model and labels are the same.
It also ends when the candidate's program has been rolled back or declined, under the name of any version.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from autoopt_pipeline.errors import PromotionConflict
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.split import HoldoutExample
from autoopt_pipeline.registry.promotion_blocks import promotion_block_reason
from autoopt_pipeline.registry.records import SequentialTestCase, SequentialTestStep, Verdict
from autoopt_pipeline.registry.version_store import VersionStore


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
    """An open sequential test: the candidate, its alpha, the queries that no longer count, and its cases, oldest first.

    `last_new` is when the test last got new cases, or else when it began (UTC).
    """

    version: str
    conditions: SequentialTestConditions
    alpha: float
    seen: frozenset[str]
    cases: tuple[PairedCase, ...]
    steps: int
    began: datetime
    last_new: datetime


def find_open_test(artifacts: VersionStore, conditions: SequentialTestConditions) -> SequentialTest | None:
    """Return the sequential test that is open under these conditions, or None."""
    steps = artifacts.sequential_test()
    if not steps or steps[-1].verdict != Verdict.INCONCLUSIVE:
        return None
    begun = [step for step in steps if not step.cases][-1]
    steps = steps[steps.index(begun) :]
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
        seen=frozenset(digest for step in steps for digest in step.seen),
        cases=tuple(_case(case) for step in steps for case in step.cases),
        steps=steps[-1].sequence,
        began=begun.at,
        last_new=steps[-1].at,
    )


def start_test(
    artifacts: VersionStore,
    version: str,
    conditions: SequentialTestConditions,
    *,
    after: int,
    alpha: float,
    queries: Iterable[str],
    run_id: str,
) -> None:
    """Start a sequential test. The normalized `queries` made, chose or judged the candidate, so they no longer count.

    `after` is the last step that the caller has read. Raises `PromotionConflict` if there are later steps.
    """
    now = datetime.now(UTC)
    test = SequentialTest(version, conditions, alpha, frozenset(), (), steps=after, began=now, last_new=now)
    _append(artifacts, test, digests(queries), (), Verdict.INCONCLUSIVE, run_id)


def append_step(
    artifacts: VersionStore,
    test: SequentialTest,
    *,
    judged: Iterable[HoldoutExample],
    cases: Sequence[PairedCase],
    verdict: Verdict,
    run_id: str,
) -> None:
    """Record the cases of new traces. Raises `PromotionConflict` if another run recorded a step first."""
    seen = digests(query for held_out in judged for query in held_out.group)
    _append(artifacts, test, seen, cases, verdict, run_id)


def new_cases(test: SequentialTest, judged: Iterable[HoldoutExample], limit: int) -> list[HoldoutExample]:
    """Return the newest `limit` holdout examples whose whole group is new to the sequential test, oldest first."""
    new = [held_out for held_out in judged if test.seen.isdisjoint(digests(held_out.group))]
    return sorted(new, key=lambda held_out: (held_out.example.time, held_out.group))[-limit:]


def digests(queries: Iterable[str]) -> list[str]:
    """Return digests of normalized queries, so that the log holds no text."""
    return sorted({hashlib.sha256(query.encode()).hexdigest()[:16] for query in queries})


def _append(
    artifacts: VersionStore,
    test: SequentialTest,
    seen: list[str],
    cases: Sequence[PairedCase],
    verdict: Verdict,
    run_id: str,
) -> None:
    step = SequentialTestStep(
        sequence=test.steps + 1,
        at=datetime.now(UTC),
        run_id=run_id,
        version=test.version,
        incumbent=test.conditions.incumbent,
        lm=test.conditions.lm,
        labels=list(test.conditions.labels),
        alpha=test.alpha,
        seen=seen,
        cases=[_stored(case) for case in cases],
        verdict=verdict.value,
    )
    if not artifacts.add_sequential_test_step(step):
        raise PromotionConflict(
            f"{artifacts.tenant_id}/{artifacts.module}: another run has continued the sequential test meanwhile",
            "nothing is lost; the next run continues it",
        )


def _stored(case: PairedCase) -> SequentialTestCase:
    return SequentialTestCase(
        label=case.label,
        incumbent_score=case.incumbent.score,
        incumbent_label=case.incumbent.label,
        incumbent_confidence=case.incumbent.confidence,
        candidate_score=case.candidate.score,
        candidate_label=case.candidate.label,
        candidate_confidence=case.candidate.confidence,
    )


def _case(stored: SequentialTestCase) -> PairedCase:
    return PairedCase(
        stored.label,
        ScoredAnswer(stored.incumbent_score, stored.incumbent_label, stored.incumbent_confidence),
        ScoredAnswer(stored.candidate_score, stored.candidate_label, stored.candidate_confidence),
    )
