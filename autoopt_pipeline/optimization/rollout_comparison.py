"""Draws traces while two versions serve side by side, so that people can say which of them answers better.

Only disagreements are asked about: where both answer alike, the difference is 0 whatever is right. Every trace since
the rollout began may be drawn, whichever version served it and on whichever side of the split its query is, because it
is newer than all that either version has learnt from. Neither which traces are drawn nor their order depends on what
became of them.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

import dspy

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.evaluation.runner import answer_all, grade
from autoopt_pipeline.evaluation.sequential_test_log import digests
from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.lm.metering import BudgetExhausted
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.modules.spec import Example, LoggedDecision
from autoopt_pipeline.optimization.disagreements import order_for_review
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.optimization.report import compared
from autoopt_pipeline.registry.records import DrawnTrace
from autoopt_pipeline.registry.rollout_records import RolloutDraw, disagreements
from autoopt_pipeline.registry.serialization import deserialize
from autoopt_pipeline.registry.transitions import Rollout
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.reviewed import is_reviewed
from autoopt_pipeline.tenants.labels import labels_of

# Most traces that one run draws, and all runs of a rollout.
MOST_PER_RUN, MOST_PER_ROLLOUT = 100, 300

# While so many disagreements wait for a review, no more traces are drawn: nobody may have time for them.
ENOUGH_TO_REVIEW = 30


def draw_for_rollout(
    job: OptimizationJob,
    rollout: Rollout | None,
    requests: Sequence[Example],
    baseline: dspy.Module,
    lm: MeteredLM,
    artifacts: VersionStore,
    tracker: PhaseTracker,
) -> list[str]:
    """Let both versions answer new traces of an open rollout, and record them for review. Returns notes for the report.

    `requests` are the examples of all decisions that can be read, and `baseline` is what serves without a version. An
    attempt draws once, also if its run was lost. Raises as `answer_all` does.
    """
    spec, attempt = job.spec, job.attempt or job.run_id
    asks_people = job.config.rollout.monitor and job.config.evidence_for(spec.name) != "live"
    if rollout is None or rollout.proving_alpha or not asks_people:
        return []
    draws = artifacts.rollout_draws(rollout.transition)
    to_review = _unreviewed(disagreements(draws), job.decisions)
    if any(draw.attempt == attempt for draw in draws) or to_review >= ENOUGH_TO_REVIEW:
        return []
    try:
        older, newer = (
            deserialize(spec, labels_of(spec, job.config), artifacts.load(version), lm.models, encoder=job.encoder)
            if version
            else baseline
            for version in (rollout.against, rollout.version)
        )
    except InvalidArtifact as e:
        return [f"the rollout's versions are not compared by reviews: {e}"]
    calls = len(older.predictors()) + len(newer.predictors())
    most = min(
        MOST_PER_RUN, MOST_PER_ROLLOUT - sum(len(draw.drawn) for draw in draws), lm.meter.calls_left // max(1, calls)
    )
    seed = f"rollout {rollout.transition.sequence} draw {len(draws)}"
    since = [request for request in requests if request.time >= rollout.transition.at]
    drawn = _drawn(since, seed=seed, most=most, without={seen for draw in draws for seen in draw.seen})
    if not drawn:
        return []
    try:
        with tracker.phase("both versions of the rollout", 2 * len(drawn)) as answered:
            before, after = (answer_all(spec, program, drawn, lm, answered=answered) for program in (older, newer))
    except BudgetExhausted as e:
        return [f"the rollout's versions are not compared by reviews, because of the budget: {e}"]
    rows = compared(drawn, before, after, (grade(spec, drawn, before), grade(spec, drawn, after)))
    draw = RolloutDraw(
        sequence=len(draws) + 1,
        at=datetime.now(UTC),
        attempt=attempt,
        lm=lm.name,
        seen=digests(normalize_query(example.query) for example in drawn),
        drawn=order_for_review(rows, seed=seed)[0],
    )
    if not artifacts.add_rollout_draw(rollout.transition, draw):
        return ["another run has drawn traces for the rollout meanwhile"]
    differ = len(disagreements([draw]))
    return [f"both versions of the rollout answered {len(drawn)} traces; people are asked about {differ} disagreements"]


def _unreviewed(asked: Iterable[DrawnTrace], decisions: Sequence[LoggedDecision]) -> int:
    unreviewed = {decision.span_id for decision in decisions if not is_reviewed(decision)}
    return sum(trace.span_id in unreviewed for trace in asked)


def _drawn(requests: Iterable[Example], *, seed: str, most: int, without: Collection[str]) -> list[Example]:
    """Draw at random among the queries that were not drawn yet, each with its latest request."""
    latest = {
        normalize_query(request.query): request for request in sorted(requests, key=lambda r: (r.time, r.span_id))
    }
    new = [query for query in latest if not without or digests([query])[0] not in without]
    return [latest[query] for query in sorted(new, key=lambda query: unit_interval(f"{seed} {query}"))[: max(0, most)]]
