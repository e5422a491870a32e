"""Stores the steps of an inconclusive candidate's sequential test (see `sequential_test`) with its versions.

A sequential test is open while its last step is `inconclusive` and its incumbent, model and labels
are still the same.
It also ends when a person has rolled back or declined the candidate's program, under whichever version's name.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from autoopt_pipeline.errors import PromotionConflict
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.split import HoldoutExample
from autoopt_pipeline.registry.promotion_blocks import why_unwanted
from autoopt_pipeline.registry.records import SequentialTestCase, SequentialTestStep, Verdict
from autoopt_pipeline.registry.version_store import VersionStore


@dataclass(frozen=True)
class SequentialTestConditions:
    """What a sequential test compares, and by whose answers. Cases under different conditions must not be added up.

    `incumbent` is the active version; of a composed module without one, it names its parts'.
    """

    incumbent: str | None
    lm: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class SequentialTest:
    """An open sequential test: the candidate, its alpha, the queries that no longer count, and its cases, oldest first.

    `last_new` is when it last had new cases, or began (UTC).
    """

    version: str
    conditions: SequentialTestConditions
    alpha: float
    seen: frozenset[str]
    cases: tuple[PairedCase, ...]
    steps: int
    began: datetime
    last_new: datetime


def open_sequential_test(artifacts: VersionStore, conditions: SequentialTestConditions) -> SequentialTest | None:
    """The sequential test that is open under these conditions; None without one."""
    steps = artifacts.sequential_test()
    if not steps or steps[-1].verdict != Verdict.INCONCLUSIVE:
        return None
    begun = [step for step in steps if not step.cases][-1]
    steps = steps[steps.index(begun) :]
    if SequentialTestConditions(begun.incumbent, begun.lm, tuple(begun.labels)) != conditions:
        return None
    transitions, (manifests, _) = artifacts.transitions(), artifacts.survey()
    digest = next((each.program_sha256 for each in manifests if each.version == begun.version), "")
    if any(transition.to_version == begun.version for transition in transitions) or why_unwanted(artifacts, digest):
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


def open_test(
    artifacts: VersionStore,
    version: str,
    conditions: SequentialTestConditions,
    *,
    after: int,
    alpha: float,
    queries: Iterable[str],
    run_id: str,
) -> None:
    """Open a sequential test. `queries` (normalized) made, chose or judged the candidate, so they no longer count.

    Raises `PromotionConflict` when there are steps that the caller, who saw them up to `after`, has not seen.
    """
    _enter(artifacts, after + 1, version, conditions, alpha, digests(queries), (), Verdict.INCONCLUSIVE, run_id)


def append_step(
    artifacts: VersionStore,
    test: SequentialTest,
    *,
    judged: Iterable[HoldoutExample],
    cases: Sequence[PairedCase],
    verdict: Verdict,
    run_id: str,
) -> None:
    """Enter what new traces said. Raises `PromotionConflict` when another run was quicker."""
    seen = digests(query for each in judged for query in each.group)
    _enter(artifacts, test.steps + 1, test.version, test.conditions, test.alpha, seen, cases, verdict, run_id)


def new_cases(test: SequentialTest, judged: Iterable[HoldoutExample], limit: int) -> list[HoldoutExample]:
    """Holdout examples whose whole group is new to the sequential test, oldest first; the newest `limit` of them."""
    new = [each for each in judged if test.seen.isdisjoint(digests(each.group))]
    return sorted(new, key=lambda each: (each.example.time, each.group))[-limit:]


def digests(queries: Iterable[str]) -> list[str]:
    """Of normalized queries: what is kept says nothing of the text."""
    return sorted({hashlib.sha256(query.encode()).hexdigest()[:16] for query in queries})


def _enter(
    artifacts: VersionStore,
    sequence: int,
    version: str,
    conditions: SequentialTestConditions,
    alpha: float,
    seen: list[str],
    cases: Sequence[PairedCase],
    verdict: Verdict,
    run_id: str,
) -> None:
    step = SequentialTestStep(
        sequence=sequence,
        at=datetime.now(UTC),
        run_id=run_id,
        version=version,
        incumbent=conditions.incumbent,
        lm=conditions.lm,
        labels=list(conditions.labels),
        alpha=alpha,
        seen=seen,
        cases=[_stored(case) for case in cases],
        verdict=verdict.value,
    )
    if not artifacts.add_sequential_test_step(step):
        raise PromotionConflict(
            f"{artifacts.tenant_id}/{artifacts.module}: another run went on with a sequential test meanwhile",
            "nothing is lost; the next run goes on from there",
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
