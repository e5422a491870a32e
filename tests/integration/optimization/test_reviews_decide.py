"""A tenant without reviews: both programs answer drawn traces, and reviews of their disagreements decide."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.modules.spec import Annotation, LoggedDecision
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.records import SequentialTestStep, Verdict
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.reviews.order import AUDITED, to_review
from tests.support.optimizing import decisions, job, stand_in

TRUTH = decisions(600, TrafficProfile(reviewed=1.0))
"""Every decision with a person's annotation that names the right answer."""

UNREVIEWED = [replace(decision, annotations=()) for decision in TRUTH]


@pytest.fixture
def awaiting(artifacts: VersionStore) -> Report:
    report = optimize(job(UNREVIEWED), stand_in(), artifacts)
    assert report.verdict is Verdict.AWAITING_REVIEWS, report.reason
    return report


def reviewed(spans: set[str]) -> list[LoggedDecision]:
    """The decisions, with what a person says of these spans."""
    return [truth if truth.span_id in spans else plain for truth, plain in zip(TRUTH, UNREVIEWED, strict=True)]


def last_step(artifacts: VersionStore) -> SequentialTestStep:
    return artifacts.sequential_test()[-1]


def test_it_compares_first_and_asks_for_few_reviews(artifacts: VersionStore, awaiting: Report) -> None:
    step, (charge,) = last_step(artifacts), artifacts.ledger()
    assert len(step.drawn) == 300 or len(step.drawn) > 150
    asked = to_review(step.drawn)
    different = [trace for trace in step.drawn if not trace.alike]
    assert len(different) <= len(asked) <= len(different) + AUDITED
    assert awaiting.reason.startswith(f"{len(different)} of {len(different)} disagreements wait for a review")
    assert 1 <= awaiting.reviews_needed <= len(different)
    assert charge.alpha == step.alpha
    assert artifacts.active() is None


def test_the_first_reviews_in_order_promote_it_without_asking_the_model_again(
    artifacts: VersionStore, awaiting: Report
) -> None:
    asked = [trace.span_id for trace in to_review(last_step(artifacts).drawn)]
    for count in range(1, len(asked) + 1):
        report = optimize(job(reviewed(set(asked[:count]))), stand_in(), artifacts)
        assert report.lm_calls == 0
        if report.verdict is not Verdict.AWAITING_REVIEWS:
            break
    assert report.verdict is Verdict.PROMOTED, report.reason
    assert report.active_version == awaiting.version
    assert count <= 30  # a hundred random traces would have needed ten times as many
    assert report.gate is not None
    drawn, decided = artifacts.sequential_test()
    assert report.gate.comparison.cases == len(drawn.drawn)
    assert decided.batch is not None
    assert len(decided.batch.reviewed) + len(decided.batch.agreed) == count
    assert len(artifacts.ledger()) == 1
    manifest = artifacts.manifest(awaiting.version or "")
    assert manifest
    assert (manifest.verdict, manifest.candidate_score) == ("promoted", report.gate.comparison.candidate_score)
    assert report.gate.comparison.gain > 0.1


def test_a_review_out_of_turn_counts_when_its_turn_comes(artifacts: VersionStore, awaiting: Report) -> None:
    asked = [trace.span_id for trace in to_review(last_step(artifacts).drawn)]
    report = optimize(job(reviewed(set(asked[1:]))), stand_in(), artifacts)
    assert report.verdict is Verdict.AWAITING_REVIEWS
    assert report.gate is not None
    assert (report.gate.comparison.fixed, report.gate.comparison.broken) == (0, 0)


def test_who_cannot_tell_has_reviewed_it_and_favours_neither(artifacts: VersionStore, awaiting: Report) -> None:
    asked = {trace.span_id for trace in to_review(last_step(artifacts).drawn)}
    unsure = Annotation("HUMAN", "unsure", {}, datetime.now(UTC))
    answers = [replace(d, annotations=(unsure,)) if d.span_id in asked else d for d in UNREVIEWED]
    report = optimize(job(answers), stand_in(), artifacts)
    assert report.verdict is Verdict.REJECTED
    assert "not better by" in report.reason


@pytest.mark.parametrize("kind", ["LLM", "CODE"])
def test_no_judge_decides(artifacts: VersionStore, awaiting: Report, kind: str) -> None:
    judged = [replace(truth, annotations=tuple(replace(a, kind=kind) for a in truth.annotations)) for truth in TRUTH]
    report = optimize(job(judged), stand_in(), artifacts)
    assert report.verdict is Verdict.AWAITING_REVIEWS
    assert artifacts.active() is None


def test_spans_that_are_gone_favour_neither(artifacts: VersionStore, awaiting: Report) -> None:
    asked = {trace.span_id for trace in to_review(last_step(artifacts).drawn)}
    report = optimize(job([d for d in UNREVIEWED if d.span_id not in asked]), stand_in(), artifacts)
    assert report.verdict is Verdict.REJECTED


def test_what_is_older_than_the_window_is_reviewed_and_not_learnt_from(
    artifacts: VersionStore, awaiting: Report
) -> None:
    asked = {trace.span_id for trace in to_review(last_step(artifacts).drawn)}
    given = replace(job(reviewed(asked)), window_start=max(d.time for d in UNREVIEWED))
    report = optimize(given, stand_in(), artifacts)
    assert report.verdict is Verdict.PROMOTED, report.reason
