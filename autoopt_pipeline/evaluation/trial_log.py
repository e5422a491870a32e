"""Keeping a waiting candidate's trial (see `trial`) with its artifacts, step by step.

A trial is open while its last step says `waiting` and it is still the same comparison: same opponent, model and labels.
A candidate that was active already, and rolled back, must not come back by itself, nor under another version's name.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from autoopt_pipeline.errors import PromotionConflict
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.split import HoldoutExample
from autoopt_pipeline.registry.promotion_blocks import why_unwanted
from autoopt_pipeline.registry.records import TrialCase, TrialStep, Verdict
from autoopt_pipeline.registry.version_store import VersionStore


@dataclass(frozen=True)
class TrialConditions:
    """Between whom a trial is, and by whose answers. Cases under other terms must not be added up.

    `incumbent` is the active version; of a composed module without one, it names its parts'.
    """

    incumbent: str | None
    lm: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """An open trial: who waits, at which alpha, which queries count no more, and the cases so far, oldest first.

    `last_new` is when it last had new cases, or began (UTC).
    """

    version: str
    terms: TrialConditions
    alpha: float
    seen: frozenset[str]
    cases: tuple[PairedCase, ...]
    steps: int
    began: datetime
    last_new: datetime


def open_trial(artifacts: VersionStore, terms: TrialConditions) -> Trial | None:
    """The trial that is under way on these terms, if there is one."""
    steps = artifacts.trial()
    if not steps or steps[-1].verdict != Verdict.WAITING:
        return None
    begun = [step for step in steps if not step.cases][-1]
    steps = steps[steps.index(begun) :]
    if TrialConditions(begun.incumbent, begun.lm, tuple(begun.labels)) != terms:
        return None
    moves, (manifests, _) = artifacts.moves(), artifacts.survey()
    digest = next((each.program_sha256 for each in manifests if each.version == begun.version), "")
    if any(move.to == begun.version for move in moves) or why_unwanted(artifacts, digest):
        return None
    return Trial(
        version=begun.version,
        terms=terms,
        alpha=begun.alpha,
        seen=frozenset(digest for step in steps for digest in step.seen),
        cases=tuple(_case(case) for step in steps for case in step.cases),
        steps=steps[-1].sequence,
        began=begun.at,
        last_new=steps[-1].at,
    )


def begin(
    artifacts: VersionStore,
    version: str,
    terms: TrialConditions,
    *,
    after: int,
    alpha: float,
    queries: Iterable[str],
    run_id: str,
) -> None:
    """Open a trial. What the candidate was made of, chosen by or judged on counts no more: `queries`, normalized.

    Raises `PromotionConflict` when there are steps that the caller, who saw them up to `after`, has not seen.
    """
    _enter(artifacts, after + 1, version, terms, alpha, digests(queries), (), Verdict.WAITING, run_id)


def go_on(
    artifacts: VersionStore,
    trial: Trial,
    *,
    judged: Iterable[HoldoutExample],
    cases: Sequence[PairedCase],
    verdict: Verdict,
    run_id: str,
) -> None:
    """Enter what new traces said. Raises `PromotionConflict` when another run was quicker."""
    seen = digests(query for each in judged for query in each.group)
    _enter(artifacts, trial.steps + 1, trial.version, trial.terms, trial.alpha, seen, cases, verdict, run_id)


def new_cases(trial: Trial, judged: Iterable[HoldoutExample], limit: int) -> list[HoldoutExample]:
    """Holdout examples whose whole group is new to the trial, oldest first; the newest `limit` of them."""
    new = [each for each in judged if trial.seen.isdisjoint(digests(each.group))]
    return sorted(new, key=lambda each: (each.example.time, each.group))[-limit:]


def digests(queries: Iterable[str]) -> list[str]:
    """Of normalized queries: what is kept says nothing of the text."""
    return sorted({hashlib.sha256(query.encode()).hexdigest()[:16] for query in queries})


def _enter(
    artifacts: VersionStore,
    sequence: int,
    version: str,
    terms: TrialConditions,
    alpha: float,
    seen: list[str],
    cases: Sequence[PairedCase],
    verdict: Verdict,
    run_id: str,
) -> None:
    step = TrialStep(
        sequence=sequence,
        at=datetime.now(UTC),
        run_id=run_id,
        version=version,
        incumbent=terms.incumbent,
        lm=terms.lm,
        labels=list(terms.labels),
        alpha=alpha,
        seen=seen,
        cases=[_stored(case) for case in cases],
        verdict=verdict.value,
    )
    if not artifacts.add_trial_step(step):
        raise PromotionConflict(
            f"{artifacts.tenant_id}/{artifacts.module}: another run went on with a trial meanwhile",
            "nothing is lost; the next run goes on from there",
        )


def _stored(case: PairedCase) -> TrialCase:
    return TrialCase(
        label=case.label,
        incumbent_score=case.incumbent.score,
        incumbent_label=case.incumbent.label,
        incumbent_confidence=case.incumbent.confidence,
        candidate_score=case.candidate.score,
        candidate_label=case.candidate.label,
        candidate_confidence=case.candidate.confidence,
    )


def _case(stored: TrialCase) -> PairedCase:
    return PairedCase(
        stored.label,
        ScoredAnswer(stored.incumbent_score, stored.incumbent_label, stored.incumbent_confidence),
        ScoredAnswer(stored.candidate_score, stored.candidate_label, stored.candidate_confidence),
    )
