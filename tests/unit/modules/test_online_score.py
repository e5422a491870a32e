"""How good a decision was in production."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.online_score import LiveOutcome, live_outcome
from autoopt_pipeline.modules.spec import Annotation, Label, Provenance
from tests.support.sample_decisions import FUSION, PLAN, T0, annotation, decision, gain

AGENTS = [Label("search_agent"), Label("summary_agent"), Label("report_agent")]
ROUTED = {"routing.query": "find the clip", "routing.chosen_agent": "search_agent", "routing.confidence": 0.4}


def outcome(
    module: str, attributes: dict[str, Any], *annotations: Annotation, failed: bool = False
) -> LiveOutcome | None:
    spec = get_module(module)
    return live_outcome(spec, spec.labels or AGENTS, decision(attributes, *annotations, failed=failed))


def score(module: str, attributes: dict[str, Any], *annotations: Annotation, failed: bool = False) -> float | None:
    found = outcome(module, attributes, *annotations, failed=failed)
    return found.score if found else None


@pytest.mark.parametrize(
    ("review", "expected"),
    [
        (annotation("correct"), 1.0),
        (annotation("wrong"), 0.0),  # teaches nothing, for nobody said what is right, but is an outcome
        (annotation("wrong", correction="report_agent"), 0.0),
        (annotation("search_agent"), 1.0),
        (annotation("report_agent"), 0.0),
        (annotation("unsure"), None),
        (annotation("wrong", sampled=False), 0.0),  # a complaint, which may come of either version
        (annotation("correct", kind="CODE"), None),
        (annotation("gone_agent"), None),
        (annotation(None), None),
    ],
)
def test_a_verdict_of_a_person_is_the_outcome(review: Annotation, expected: float | None) -> None:
    assert score("routing", ROUTED, review) == expected


def test_a_review_that_was_asked_for_because_two_programs_differ_is_no_outcome() -> None:
    asked = replace(annotation("report_agent", minute=5), metadata={"sampling": "disagreement"})
    assert score("routing", ROUTED, asked) is None
    assert score("routing", {**ROUTED, "routing.success": True}, asked) == 1.0
    assert score("routing", ROUTED, asked, annotation("wrong", sampled=False)) == 0.0


def test_people_outrank_judges_and_the_last_word_counts() -> None:
    assert score("routing", ROUTED, annotation("wrong", minute=1), annotation("correct", kind="LLM", minute=9)) == 0.0
    assert score("routing", ROUTED, annotation("wrong", minute=1), annotation("correct", minute=2)) == 1.0
    assert score("routing", ROUTED, annotation("unsure", minute=3), annotation("wrong", kind="LLM")) == 0.0


def test_an_outcome_is_known_when_it_was_said_and_else_when_it_happened() -> None:
    said = outcome("routing", ROUTED, annotation("wrong", minute=7))
    became = outcome("routing", {**ROUTED, "routing.success": True})
    assert said and said.known_at == T0 + timedelta(minutes=7)
    assert became and became.known_at == T0


@pytest.mark.parametrize(
    ("more", "failed", "expected"),
    [
        ({}, False, None),
        ({}, True, 0.0),
        ({"routing.success": True}, False, 1.0),
        ({"routing.success": False}, False, 0.0),
        ({"routing.success": "maybe"}, False, None),
    ],
)
def test_what_became_of_the_request_counts_where_nobody_judged_it(
    more: dict[str, Any], failed: bool, expected: float | None
) -> None:
    assert score("routing", ROUTED | more, failed=failed) == expected


def test_a_plan_gets_partial_credit_as_it_does_where_programs_are_compared() -> None:
    assert score("workflow", PLAN, annotation("search_agent > report_agent")) == pytest.approx(0.8 * 0.5 + 0.2)
    assert score("workflow", PLAN, annotation("search_agent > summary_agent")) == 1.0
    assert score("workflow", PLAN, annotation("wrong")) == 0.0


def test_a_fusion_that_gained_was_right_and_its_quality_counts_where_nobody_judged() -> None:
    assert score("cross_modal", FUSION, gain(0.3)) == 1.0
    assert score("cross_modal", FUSION, gain(-0.3)) == 0.0
    assert score("cross_modal", {**FUSION, "cross_modal.quality": 0.6}) == 0.6
    assert score("cross_modal", {**FUSION, "cross_modal.quality": 0.6}, failed=True) == 0.0


def test_a_composed_decision_is_the_mean_of_the_parts_that_are_known() -> None:
    spec = get_module("unified")
    parts = {
        "routing": decision(ROUTED, annotation("correct", minute=2)),
        "modality": decision(ROUTED, annotation("wrong", minute=5)),
        "workflow": decision(PLAN),
    }
    found = live_outcome(spec, AGENTS, replace(decision(PLAN), parts=parts))
    assert found == LiveOutcome(T0 + timedelta(minutes=5), T0, 0.5, Provenance.HUMAN)
    assert live_outcome(spec, AGENTS, replace(decision(PLAN), parts={"workflow": decision(PLAN)})) is None
