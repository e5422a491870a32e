"""A tenant without reviewers: a candidate serves a fraction of the requests until their outcomes prove it."""

import random
from dataclasses import replace
from datetime import timedelta

import pytest

from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.modules.online_score import LiveOutcome, live_outcome
from autoopt_pipeline.modules.spec import Annotation
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.transitions import active_rollout
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.analysis import AnalysisStatus, RolloutAnalysis, VersionSample, analyze_rollout
from autoopt_pipeline.tenants.config import with_field
from autoopt_pipeline.tenants.labels import labels_of
from tests.support.optimizing import CONFIG, END, ROUTING, decisions, job, stand_in

LIVE = with_field(CONFIG, "evidence", "live")
UNREVIEWED = decisions(600, TrafficProfile(reviewed=0.0, complains=0.0))
ALPHA = 0.019


def test_the_candidate_gets_a_fraction_of_the_requests_and_is_not_active(artifacts: VersionStore) -> None:
    report = optimize(job(UNREVIEWED, LIVE), stand_in(), artifacts)
    assert report.verdict is Verdict.CANARY, report.reason
    assert "10 % of requests go to it until outcomes prove it" in report.reason
    assert "of its outcomes for +8 points, 5 days at this traffic" in report.reason
    assert artifacts.active() is None
    (transition,), (charge,) = artifacts.transitions(), artifacts.ledger()
    assert transition.canary == {report.version: 0.1}
    assert transition.proving_alpha == charge.alpha
    assert not transition.resets_alpha_budget
    again = optimize(job(UNREVIEWED, LIVE, "again"), stand_in(), artifacts)
    assert (again.verdict, again.lm_calls) == (Verdict.CANARY, 0)
    assert "becomes active if its outcomes prove it better" in again.reason


def test_one_module_may_differ_from_its_tenant(artifacts: VersionStore) -> None:
    config = with_field(LIVE, "modules.routing.evidence", "reviews")
    assert optimize(job(UNREVIEWED, config), stand_in(), artifacts).verdict is Verdict.AWAITING_REVIEWS
    assert artifacts.transitions() == []


@pytest.mark.parametrize(("field", "value"), [("mode", "propose"), ("rollout.monitor", "false")])
def test_what_decides_in_production_cannot_be_turned_off(field: str, value: str) -> None:
    with pytest.raises(InvalidConfig, match=f"evidence: live needs {field}"):
        with_field(LIVE, field, value)


def test_a_proof_has_no_early_end_without_one(artifacts: VersionStore) -> None:
    optimize(job(UNREVIEWED, LIVE), stand_in(), artifacts)
    rollout = active_rollout(artifacts.last_transition())
    assert rollout and rollout.proving_alpha == pytest.approx(ALPHA, abs=0.001)
    equal = analyze(*samples(0.7, 0.7, canaries=600), days=5)
    assert equal.status is AnalysisStatus.OPEN  # enough comparisons for a canary that need not be better
    assert analyze(*samples(0.7, 0.7, canaries=600), days=15).status is AnalysisStatus.UNPROVEN
    assert analyze(*samples(0.85, 0.7, canaries=300), days=5).status is AnalysisStatus.BETTER
    assert analyze(*samples(0.4, 0.7, canaries=300), days=5).status is AnalysisStatus.WORSE


def test_a_judge_that_leans_to_the_candidate_proves_nothing() -> None:
    decision = UNREVIEWED[0]
    judged = replace(decision, annotations=(Annotation("LLM", "correct", {}, END),))
    labels = labels_of(ROUTING, CONFIG)
    with_judges, without = (live_outcome(ROUTING, labels, judged, judges=judges) for judges in (True, False))
    assert with_judges and with_judges.known_at == END
    assert without is None or without.known_at == decision.time


def samples(canary: float, others: float, *, canaries: int) -> tuple[VersionSample, VersionSample]:
    rng = random.Random(3)

    def outcomes(count: int, score: float) -> tuple[LiveOutcome, ...]:
        times = sorted(rng.uniform(0, 86400) for _ in range(count))
        return tuple(
            LiveOutcome(END + timedelta(seconds=at), END + timedelta(seconds=at), float(rng.random() < score))
            for at in times
        )

    newer, older = outcomes(canaries, canary), outcomes(9 * canaries, others)
    return VersionSample(len(newer), newer), VersionSample(len(older), older)


def analyze(newer: VersionSample, older: VersionSample, *, days: int) -> RolloutAnalysis:
    return analyze_rollout(newer, older, age=timedelta(days=days), longest=timedelta(days=14), proving_alpha=ALPHA)
