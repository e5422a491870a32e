import json

import pytest

from autoopt_pipeline.modules.builtin.modality import MODALITY
from autoopt_pipeline.modules.builtin.routing import ROUTING
from autoopt_pipeline.modules.labeling import build_examples
from autoopt_pipeline.modules.spec import Annotation, Example, Label, Provenance
from tests.support.sample_decisions import annotation, decision

AGENTS = [Label("search_agent"), Label("report_agent")]
FLAT = {"routing.query": "where is it", "routing.chosen_agent": "search_agent", "routing.confidence": 0.9}


def built(attributes: dict, *annotations: Annotation, failed: bool = False) -> Example:
    found = build_examples(ROUTING, AGENTS, [decision(attributes, *annotations, failed=failed)])
    assert found.unusable == {}
    return found.examples[0]


def reason(attributes: dict, *annotations: Annotation, failed: bool = False) -> str:
    found = build_examples(ROUTING, AGENTS, [decision(attributes, *annotations, failed=failed)])
    assert found.examples == ()
    return next(iter(found.unusable))


def test_a_confident_decision_that_did_not_fail_is_an_outcome_label_that_cannot_judge() -> None:
    example = built(FLAT)
    assert (example.query, example.label) == ("where is it", "search_agent")
    assert example.provenance is Provenance.OUTCOME
    assert example.independent is False


def test_openinference_json_is_read_like_flat_keys() -> None:
    example = built(
        {
            "input.value": json.dumps({"query": "where is it"}),
            "output.value": json.dumps({"agent": "report_agent", "confidence": 0.8}),
        }
    )
    assert (example.query, example.label) == ("where is it", "report_agent")


def test_a_correction_replaces_the_decision() -> None:
    example = built(FLAT, annotation("wrong", correction="report_agent"))
    assert (example.label, example.provenance) == ("report_agent", Provenance.HUMAN)


@pytest.mark.parametrize("label", ["wrong", "wrong_routing", "ambiguous", "insufficient_info"])
def test_a_decision_marked_wrong_without_a_right_answer_is_never_learnt_as_right(label: str) -> None:
    assert reason(FLAT, annotation(label)) == "judged wrong or unclear, with no right answer given"


def test_any_other_label_is_the_right_answer_itself() -> None:
    assert built(FLAT, annotation("report_agent")).label == "report_agent"


def test_a_person_outranks_a_judge_whoever_spoke_last() -> None:
    person, judge = annotation("report_agent"), annotation("correct", "LLM", minute=9)
    for order in ([person, judge], [judge, person]):
        assert built(FLAT, *order).label == "report_agent"
    assert reason(FLAT, annotation("wrong"), judge).startswith("judged wrong")


def test_of_two_people_the_last_counts() -> None:
    assert built(FLAT, annotation("report_agent", minute=1), annotation("correct", minute=2)).label == "search_agent"


DRAWN = {**FLAT, "autoopt.review_sample": True}


def test_a_review_that_says_it_was_drawn_at_random_may_judge() -> None:
    assert built(FLAT, annotation("correct")).independent


def test_a_review_made_in_phoenix_of_a_trace_that_was_drawn_may_judge() -> None:
    assert built(DRAWN, annotation("correct", sampled=False, made_in_ui=True)).independent
    assert not built(FLAT, annotation("correct", sampled=False, made_in_ui=True)).independent


def test_a_complaint_may_train_but_not_judge_even_about_a_trace_that_was_drawn() -> None:
    complaint = annotation("wrong", sampled=False, correction="report_agent")
    for attributes in (FLAT, DRAWN):
        example = built(attributes, complaint)
        assert example.label == "report_agent"
        assert not example.independent


def test_a_random_draw_does_not_make_an_outcome_label_independent() -> None:
    assert not built({**FLAT, "autoopt.review_sample": True}).independent


def test_a_review_counts_even_where_the_request_failed_or_was_unsure() -> None:
    assert built({**FLAT, "routing.confidence": 0.1}, annotation("correct"), failed=True).label == "search_agent"


@pytest.mark.parametrize(
    ("change", "failed", "expected"),
    [
        ({"routing.query": None}, False, "no query"),
        ({"routing.query": "  "}, False, "query is no text"),
        ({"routing.query": 42}, False, "query is no text"),
        ({"routing.query": "x" * 5000}, False, "query is longer than 4000 characters"),
        ({"routing.chosen_agent": None}, False, "no agent"),
        ({"routing.chosen_agent": ["search_agent"]}, False, "no agent"),
        ({"routing.chosen_agent": "gone_agent"}, False, "agent is not one of the current labels"),
        ({"routing.confidence": 0.3}, False, "unsure, and nobody reviewed it"),
        ({"routing.confidence": None}, False, "no confidence, and nobody reviewed it"),
        ({"routing.confidence": "high"}, False, "no confidence, and nobody reviewed it"),
        ({"routing.confidence": float("inf")}, False, "no confidence, and nobody reviewed it"),
        ({"routing.success": False}, False, "the request failed and nobody reviewed it"),
        ({}, True, "the request failed and nobody reviewed it"),
    ],
)
def test_what_cannot_be_used_is_counted_by_reason_and_never_guessed(change: dict, failed: bool, expected: str) -> None:
    assert reason({**FLAT, **change}, failed=failed) == expected


def test_modality_and_routing_read_the_same_span() -> None:
    attributes = {**FLAT, "routing.modality": "video"}
    found = build_examples(MODALITY, MODALITY.labels or (), [decision(attributes)])
    assert found.examples[0].label == "video"


def test_booleans_are_read_as_phoenix_on_sqlite_gives_them() -> None:
    assert reason({**FLAT, "routing.success": 0}) == "the request failed and nobody reviewed it"
    assert built({**FLAT, "routing.success": 1}).label == "search_agent"
    drawn = {**FLAT, "autoopt.review_sample": 1}
    assert built(drawn, annotation("correct", sampled=False, made_in_ui=True)).independent
