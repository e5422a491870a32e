"""People say who is right where the two versions of a rollout differ, and that is evidence beside the outcomes."""

import math
import random
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.evaluation.statistics import log_e_value
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.online_score import LiveOutcome
from autoopt_pipeline.modules.spec import Annotation, Label
from autoopt_pipeline.registry.records import DrawnTrace, StoredAnswer
from autoopt_pipeline.rollouts.analysis import (
    ALPHA,
    ENOUGH,
    AnalysisStatus,
    ReviewComparison,
    RolloutAnalysis,
    VersionSample,
    analyze_rollout,
)
from autoopt_pipeline.rollouts.reviewed import compare_by_reviews
from tests.support.sample_decisions import T0, annotation, decision

ROUTING = get_module("routing")
OLD, NEW, OTHER = "search_agent", "report_agent", "summary_agent"
LABELS = [Label(name) for name in (OLD, NEW, OTHER)]
SERVED = {"routing.query": "find the clip", "routing.chosen_agent": NEW, "routing.confidence": 0.9}
BY_OLD, BY_NEW = (
    StoredAnswer(values={"agent": OLD}, confidence=0.9),
    StoredAnswer(values={"agent": NEW}, confidence=0.9),
)
HALF, LOST, WON = 0.5, -1.0, 1.0


def asked(label: str, minute: int = 0) -> Annotation:
    return Annotation("HUMAN", label, {"sampling": "disagreement"}, T0 + timedelta(minutes=minute))


def compared(*answers: Annotation | tuple[Annotation, ...] | None) -> ReviewComparison:
    """Compare a disagreement for each of these annotations; None is a trace that Phoenix no longer has."""
    traces, decisions = [], {}
    for place, given_answers in enumerate(answers):
        span = f"{place:016x}"
        traces.append(
            DrawnTrace(span_id=span, trace_id=span * 2, time=T0, alike=False, incumbent=BY_OLD, candidate=BY_NEW)
        )
        if given_answers is not None:
            annotations = given_answers if isinstance(given_answers, tuple) else (given_answers,)
            decisions[span] = replace(decision(SERVED, *annotations), span_id=span)
    return compare_by_reviews(ROUTING, LABELS, traces, decisions)


def analyzed(
    reviews: ReviewComparison | None, newer: VersionSample | None = None, older: VersionSample | None = None
) -> RolloutAnalysis:
    return analyze_rollout(
        newer or VersionSample(),
        older or VersionSample(),
        age=timedelta(days=1),
        longest=timedelta(days=14),
        reviews=reviews,
    )


def test_each_review_says_which_version_was_right() -> None:
    found = compared(asked(NEW), asked(OLD), asked(OTHER))
    assert found == ReviewComparison((1.0, -1.0, 0.0), to_review=0)


def test_only_reviews_before_the_first_missing_one_count() -> None:
    assert compared(asked(OLD), (), asked(OLD), ()) == ReviewComparison((-1.0,), to_review=2)


@pytest.mark.parametrize("answer", [None, asked("unsure"), asked("ambiguous")])
def test_who_cannot_tell_and_what_is_gone_favours_neither(answer: Annotation | None) -> None:
    assert compared(answer, asked(OLD)) == ReviewComparison((0.0, -1.0), to_review=0)


@pytest.mark.parametrize(
    "uninvited", [annotation("correct", sampled=False), annotation(NEW), annotation(NEW, kind="LLM")]
)
def test_praise_of_the_version_that_served_is_no_review(uninvited: Annotation) -> None:
    assert compared(uninvited, asked(NEW)) == ReviewComparison((), to_review=1)
    assert compared((uninvited, asked(OLD))) == ReviewComparison((-1.0,), to_review=0)


def test_the_last_review_of_several_counts() -> None:
    assert compared((asked(OLD, minute=1), asked(NEW, minute=2))).gains == (1.0,)


def test_an_unreadable_answer_is_wrong() -> None:
    nothing = StoredAnswer(values=None, confidence=None)
    trace = DrawnTrace(span_id="s", trace_id="t", time=T0, alike=False, incumbent=BY_OLD, candidate=nothing)
    reviewed = {"s": decision(SERVED, asked(OLD))}
    assert compare_by_reviews(ROUTING, LABELS, [trace], reviewed).gains == (-1.0,)
    assert compare_by_reviews(ROUTING, LABELS, [trace], {"s": decision(SERVED, asked(OTHER))}).gains == (0.0,)


def test_reviews_alone_find_a_version_that_loses_its_disagreements() -> None:
    found = analyzed(ReviewComparison((LOST,) * 10, to_review=3))
    assert found.status is AnalysisStatus.WORSE
    assert found.reason.endswith("0 comparisons, 10 reviewed disagreements (0 for it, 10 for its predecessor)")
    assert analyzed(ReviewComparison((WON,) * 10)).status is AnalysisStatus.BETTER
    assert analyzed(ReviewComparison((WON, LOST) * 30)).status is AnalysisStatus.OPEN


def test_without_a_draw_nothing_changes_and_a_draw_without_reviews_halves_the_evidence() -> None:
    times = [T0 + timedelta(minutes=minute) for minute in range(60)]
    bad, good = (VersionSample(60, tuple(LiveOutcome(at, at, score) for at in times)) for score in (0.0, 1.0))
    alone, beside = analyzed(None, bad, good), analyzed(ReviewComparison(to_review=4), bad, good)
    assert "disagreements" not in alone.reason
    assert 1 / beside.p_worse == pytest.approx((1 / alone.p_worse + 1) / 2)


scores = st.lists(st.sampled_from([LOST, -HALF, 0.0, HALF, WON]), max_size=40)


@given(scores)
def test_the_combined_p_value_is_the_inverse_of_the_mean_e_value(gains: list[float]) -> None:
    found = analyzed(ReviewComparison(tuple(gains)))
    for p, log_e in (
        (found.p_better, log_e_value(gains)),
        (found.p_worse, log_e_value([-gain for gain in gains])),
    ):
        assert p == pytest.approx(min(1.0, 1 / ((1.0 + math.exp(log_e)) / 2)))


def test_equal_versions_are_hardly_ever_told_apart_however_often_reviews_are_read() -> None:
    rng, rollouts = random.Random(1), 300
    alarms = 0
    for _ in range(rollouts):
        gains: list[float] = []
        for _night in range(14):
            gains += rng.choices([LOST, WON, 0.0], [2, 2, 1], k=10)
            if analyzed(ReviewComparison(tuple(gains))).p_worse <= ALPHA:
                alarms += 1
                break
    # By design at most 5 in 100; more than 24 of 300 would be one chance in 100.
    assert alarms <= 24


def test_reviews_end_no_rollout_as_not_worse() -> None:
    assert analyzed(ReviewComparison((0.0,) * ENOUGH)).status is AnalysisStatus.OPEN
