"""Sequential tests in the making, without a model that answers."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.sequential_test import known_batch
from autoopt_pipeline.evaluation.sequential_test_log import SequentialTestConditions, append_step, new_test
from autoopt_pipeline.registry.records import DrawnTrace, SequentialTestStep, StoredBatch, StoredCase, Verdict
from autoopt_pipeline.registry.version_store import VersionStore


def begin_test(
    artifacts: VersionStore,
    version: str,
    conditions: SequentialTestConditions,
    seen: Collection[str] = (),
    *,
    alpha: float = 0.01,
    run_id: str = "r",
    after: int | None = None,
) -> None:
    """A test that has drawn a hundred traces, to which both programs gave the right answer."""
    steps = artifacts.last_sequential_test_step() if after is None else after
    test = new_test(version, conditions, after=steps, alpha=alpha, draws="reviewed")
    right = ScoredAnswer(1.0, "search_agent", 0.9)
    batch = known_batch([PairedCase("search_agent", right, right)] * 100)
    append_step(artifacts, test, Verdict.INCONCLUSIVE, run_id=run_id, seen=seen, batch=batch)


def made_step(  # noqa: PLR0913 - keyword-only parts of one record
    version: str,
    sequence: int = 1,
    *,
    verdict: str = "inconclusive",
    incumbent: str | None = None,
    labels: Sequence[str] = (),
    scores: Sequence[tuple[float, float]] = (),
    drawn: Sequence[DrawnTrace] = (),
    at: datetime | None = None,
) -> SequentialTestStep:
    """A step with these pairs of scores, of the incumbent and of the candidate, or with traces that await reviews."""
    cases = [
        StoredCase(
            label="a",
            incumbent_score=before,
            incumbent_label=None,
            incumbent_confidence=None,
            candidate_score=after,
            candidate_label=None,
            candidate_confidence=None,
        )
        for before, after in scores
    ]
    different = [case for case in cases if case.incumbent_score != case.candidate_score]
    same = [case for case in cases if case.incumbent_score == case.candidate_score]
    batch = StoredBatch(
        reviewed=different, disagreements=len(different), known=len(different), agreed=same, presumed=[]
    )
    return SequentialTestStep(
        sequence=sequence,
        at=at or datetime.now(UTC),
        run_id="r",
        version=version,
        incumbent=incumbent,
        lm="stand-in",
        labels=list(labels),
        alpha=0.01,
        begins=sequence == 1,
        draws="all" if drawn else "reviewed",
        seen=[],
        drawn=list(drawn),
        batch=batch if cases else None,
        verdict=verdict,
    )
