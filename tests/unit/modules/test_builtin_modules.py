"""Examples of the modules with labels of their own: cross_modal, workflow, unified."""

import json
from dataclasses import replace
from typing import Any

import pytest

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Annotation, Example, ExampleSet, Label, LoggedDecision, ModuleSpec, Provenance
from tests.support.sample_decisions import FUSION, PLAN, T0, annotation, decision, gain

CROSS_MODAL, WORKFLOW, UNIFIED = get_module("cross_modal"), get_module("workflow"), get_module("unified")
AGENTS = [Label("search_agent"), Label("summary_agent"), Label("report_agent")]


def build(spec: ModuleSpec, *decisions: LoggedDecision) -> ExampleSet:
    return spec.build_examples(spec.labels or AGENTS, decisions)


def one(spec: ModuleSpec, attributes: dict[str, Any], *annotations: Annotation, failed: bool = False) -> Example:
    found = build(spec, decision(attributes, *annotations, failed=failed))
    assert found.unusable == {}
    return found.examples[0]


def why_not(spec: ModuleSpec, attributes: dict[str, Any], *annotations: Annotation, failed: bool = False) -> str:
    found = build(spec, decision(attributes, *annotations, failed=failed))
    assert found.examples == ()
    return next(iter(found.unusable))


def test_the_score_of_an_annotation_is_the_gain_of_fusing() -> None:
    fused = one(CROSS_MODAL, FUSION, gain(0.3))
    assert fused.right == {"fuse": "fuse"}
    assert fused.inputs["modalities"] == "video 0.80, text 0.50"
    assert (fused.provenance, fused.independent) == (Provenance.HUMAN, True)
    assert one(CROSS_MODAL, FUSION, gain(-0.2)).right == {"fuse": "single"}


@pytest.mark.parametrize(
    ("review", "right"),
    [
        (gain(0.3), {"fuse": "fuse"}),
        (annotation("fuse"), {"fuse": "fuse"}),
        (annotation("wrong"), {"fuse": "single"}),
        (annotation("correct"), {"fuse": "fuse", "primary": "text", "secondary": "video"}),
        (annotation("Fuse: audio + text"), {"fuse": "fuse", "primary": "audio", "secondary": "text"}),
        (annotation("wrong", correction="single: video"), {"fuse": "single", "primary": "video", "secondary": "none"}),
        (annotation("wrong", correction="single"), {"fuse": "single"}),
    ],
)
def test_modalities_judge_only_where_somebody_said_that_they_are_right(review: Annotation, right: dict) -> None:
    found = one(CROSS_MODAL, {**FUSION, "cross_modal.primary": "text", "cross_modal.secondary": "video"}, review)
    assert found.right == right
    # A demo is complete all the same, with the surest ones.
    surest = {"primary": "video", "secondary": "text" if right["fuse"] == "fuse" else "none"}
    assert found.assumed == ({} if "primary" in right else surest)


@pytest.mark.parametrize(
    "named",
    [
        {"cross_modal.primary": "audio"},
        {"cross_modal.primary": "text"},
        {"cross_modal.secondary": None},
        {"cross_modal.primary": None},
        {"cross_modal.fused": False},
    ],
)
def test_confirming_a_decision_confirms_no_modalities_that_do_not_fit_it(named: dict) -> None:
    assert one(CROSS_MODAL, {**FUSION, **named}, annotation("correct")).right.keys() == {"fuse"}


def test_confirming_an_answer_from_one_modality_confirms_that_one() -> None:
    attributes = {**FUSION, "cross_modal.fused": False, "cross_modal.secondary": None}
    right = {"fuse": "single", "primary": "video", "secondary": "none"}
    assert one(CROSS_MODAL, attributes, annotation("correct")).right == right


@pytest.mark.parametrize("label", ["fuse: video", "fuse: video + video", "single: video + text", "single: smell", "no"])
def test_a_fusion_that_cannot_be_read_teaches_nothing(label: str) -> None:
    assert why_not(CROSS_MODAL, FUSION, annotation(label)) == "the right fusion cannot be read"


def test_a_label_is_read_before_the_score_that_comes_with_it() -> None:
    categorical = {"correct": 1.0, "wrong": 0.0}
    unfused = {**FUSION, "cross_modal.fused": False}
    for label, score in categorical.items():
        for attributes in (FUSION, unfused):
            with_score = replace(annotation(label), score=score)
            assert (
                one(CROSS_MODAL, attributes, with_score).label == one(CROSS_MODAL, attributes, annotation(label)).label
            )


def test_a_gain_that_is_not_worth_a_second_search_is_none() -> None:
    assert one(CROSS_MODAL, FUSION, gain(0.04)).label == "single"


def test_a_wrong_decision_to_fuse_teaches_not_to_and_the_other_way_round() -> None:
    assert one(CROSS_MODAL, FUSION, annotation("wrong")).label == "single"
    assert one(CROSS_MODAL, FUSION, annotation("correct")).label == "fuse"
    assert one(CROSS_MODAL, {**FUSION, "cross_modal.fused": False}, annotation("wrong")).label == "fuse"
    assert one(CROSS_MODAL, FUSION, annotation("single")).label == "single"
    assert why_not(CROSS_MODAL, FUSION, annotation("ambiguous")).startswith("judged wrong or unclear")


def _outcomes(fused: float, unfused: float, each: int = 2) -> list[LoggedDecision]:
    wordings = ("the clip and what was said about it", "The clip, and what was said about it!")
    made = []
    for number in range(2 * each):
        done = number % 2 == 0
        attributes = {
            **FUSION,
            "cross_modal.query": wordings[number % 3 % 2],
            "cross_modal.fused": done,
            "cross_modal.quality": fused if done else unfused,
        }
        made.append(LoggedDecision(f"{number:016x}", f"{number:032x}", T0, False, attributes))
    return made


def test_fused_and_unfused_outcomes_of_like_queries_measure_the_gain_and_not_the_quality() -> None:
    assert {e.label for e in build(CROSS_MODAL, *_outcomes(0.9, 0.5)).examples} == {"fuse"}
    assert {e.label for e in build(CROSS_MODAL, *_outcomes(0.95, 0.94)).examples} == {"single"}
    assert not any(e.independent for e in build(CROSS_MODAL, *_outcomes(0.9, 0.5)).examples)


def test_one_outcome_with_one_would_be_chance() -> None:
    found = build(CROSS_MODAL, *_outcomes(0.9, 0.5, each=1))
    assert found.unusable == {"nobody reviewed it, and no like query was answered the other way": 2}


@pytest.mark.parametrize(
    ("detected", "expected"),
    [
        (None, "no modalities"),
        ("video", "modalities are no JSON"),
        ("[]", "fewer than two modalities were detected"),
        ('[{"modality": "video"}]', "modalities are no list of modality and confidence"),
        ('[{"modality": "smell", "confidence": 1}]', "a detected modality is unknown or has no confidence"),
        ('[{"modality": "video", "confidence": NaN}]', "a detected modality is unknown or has no confidence"),
    ],
)
def test_malformed_modalities_are_counted_by_reason(detected: str | None, expected: str) -> None:
    assert why_not(CROSS_MODAL, {**FUSION, "cross_modal.detected_modalities": detected}, gain(0.3)) == expected


def test_a_plan_that_went_well_is_learnt_and_one_that_did_not_is_not() -> None:
    learnt = one(WORKFLOW, PLAN)
    assert learnt.right == {"agents": ["search_agent", "summary_agent"], "pattern": "sequential"}
    assert learnt.label == "search_agent > summary_agent"
    assert learnt.inputs["available_agents"] == "search_agent, summary_agent, report_agent"
    assert why_not(WORKFLOW, {**PLAN, "orchestration.success": False}) == "the request failed and nobody reviewed it"


def test_a_plan_is_corrected_the_way_it_is_shown() -> None:
    corrected = one(WORKFLOW, PLAN, annotation("wrong", correction="search_agent + report_agent"))
    assert corrected.right == {"agents": ["search_agent", "report_agent"], "pattern": "parallel"}
    assert one(WORKFLOW, PLAN, annotation("report_agent")).right["agents"] == ["report_agent"]


@pytest.mark.parametrize("written", ['["search_agent", "summary_agent"]', ["search_agent", "summary_agent"]])
def test_a_plan_may_be_a_list_too(written: object) -> None:
    attributes = {**PLAN, "orchestration.execution_order": written}
    assert one(WORKFLOW, attributes).right["agents"] == ["search_agent", "summary_agent"]


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        ("search_agent,gone_agent", "the plan names an agent that is not one of the current ones"),
        (",".join(["search_agent"] * 9), "the plan has more than 8 agents"),
        ("", "no agents"),
        ("[not json", "no agents"),
        (7, "no agents"),
        ("search_agent,,report_agent", "no agents"),
    ],
)
def test_plans_that_cannot_be_learnt_are_counted_by_reason(agents: object, expected: str) -> None:
    assert why_not(WORKFLOW, {**PLAN, "orchestration.execution_order": agents}) == expected


def _parts(**annotations: Annotation) -> dict[str, LoggedDecision]:
    routed = {
        "routing.query": PLAN["orchestration.query"],
        "routing.chosen_agent": "search_agent",
        "routing.modality": "document",
        "routing.confidence": 0.9,
    }
    made = {"modality": decision(routed), "routing": decision(routed), "workflow": decision(PLAN)}
    return {
        name: replace(own, annotations=tuple(a for a in [annotations.get(name)] if a)) for name, own in made.items()
    }


def test_the_whole_is_learnt_where_every_part_is_known() -> None:
    (whole,) = build(UNIFIED, replace(decision(PLAN), parts=_parts())).examples
    assert whole.right == {
        "modality": "document",
        "agent": "search_agent",
        "agents": ["search_agent", "summary_agent"],
        "pattern": "sequential",
    }
    assert whole.inputs == {"query": PLAN["orchestration.query"], "entities": "", "relationships": ""}
    assert whole.provenance is Provenance.OUTCOME


def test_the_whole_is_worth_as_much_as_its_least_certain_part() -> None:
    reviewed = {name: annotation("correct") for name in ("modality", "routing", "workflow")}
    (whole,) = build(UNIFIED, replace(decision(PLAN), parts=_parts(**reviewed))).examples
    assert (whole.provenance, whole.independent) == (Provenance.HUMAN, True)
    reviewed["routing"] = annotation("correct", "LLM", sampled=False)
    (whole,) = build(UNIFIED, replace(decision(PLAN), parts=_parts(**reviewed))).examples
    assert (whole.provenance, whole.independent) == (Provenance.JUDGE, False)


def test_a_trace_without_one_of_the_parts_says_which() -> None:
    parts = _parts()
    del parts["routing"]
    assert build(UNIFIED, replace(decision(PLAN), parts=parts)).unusable == {
        "the trace has no cogniverse.routing span for routing": 1
    }
    parts = _parts(workflow=annotation("wrong"))
    assert build(UNIFIED, replace(decision(PLAN), parts=parts)).unusable == {
        "workflow: judged wrong or unclear, with no right answer given": 1
    }


def test_a_modality_that_is_detected_twice_counts_once_with_its_surest() -> None:
    video = [{"modality": "video", "confidence": 0.4}, {"modality": "Video", "confidence": 0.9}]
    twice = {**FUSION, "cross_modal.detected_modalities": json.dumps(video)}
    assert why_not(CROSS_MODAL, twice, gain(0.3)) == "fewer than two modalities were detected"
    text = {"modality": "text", "confidence": 0.5}
    both = {**FUSION, "cross_modal.detected_modalities": json.dumps([*video, text])}
    assert one(CROSS_MODAL, both, gain(0.3)).inputs["modalities"] == "video 0.90, text 0.50"
