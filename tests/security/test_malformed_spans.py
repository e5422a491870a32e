"""One span that holds nonsense is counted; it fails no module, and what is learnt of it can be stored."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.evaluation.split import split_examples
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.coercion import as_text, number, parse_json
from autoopt_pipeline.modules.spec import ExampleSet, Label, LoggedDecision, ModuleSpec
from autoopt_pipeline.registry.records import Program
from tests.support.sample_decisions import annotation, decision
from tests.support.span_values import texts, values

BUILT_IN = ("modality", "routing", "cross_modal", "workflow", "unified")
AGENTS = [Label("search_agent"), Label("report_agent")]
HALF = "\ud83d"  # of an emoji
SENSE: dict[str, Any] = {
    "routing.query": "where is it",
    "routing.chosen_agent": "search_agent",
    "routing.modality": "video",
    "routing.confidence": 0.9,
    "cross_modal.query": "where is it",
    "cross_modal.detected_modalities": json.dumps(
        [{"modality": name, "confidence": 0.9} for name in ("video", "text")]
    ),
    "cross_modal.fused": True,
    "cross_modal.primary": "video",
    "cross_modal.secondary": "text",
    "cross_modal.quality": 0.9,
    "orchestration.query": "where is it",
    "orchestration.execution_order": "search_agent,report_agent",
    "orchestration.pattern": "parallel",
    "orchestration.confidence": 0.9,
}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


nonsense = (
    values
    | values.map(json.dumps)
    | st.sampled_from(["[" * 100_000, '{"query":' * 100_000, "video" * 10_000, f'{{"query": "a{HALF}'])
    | st.sampled_from([10, 1000, 50_000]).map(nested)
    | texts.map(lambda text: json.dumps({"query": text, "agent": "search_agent", "confidence": 10**400}))
)


def build(module: str, given: LoggedDecision) -> ExampleSet:
    spec = get_module(module)
    parts = {part.name: replace(given, annotations=()) for part in spec.parts}
    return spec.build_examples(spec.labels or AGENTS, [replace(given, parts=parts)])


def columns(spec: ModuleSpec) -> list[str]:
    return sorted({column for each in (spec, *spec.parts) for column in each.contract.columns})


@pytest.mark.parametrize("module", BUILT_IN)
@given(st.data())
def test_whatever_a_span_holds_no_module_fails_and_what_is_learnt_can_be_stored(
    module: str, data: st.DataObject
) -> None:
    broken = data.draw(st.dictionaries(st.sampled_from(columns(get_module(module))), nonsense, max_size=4))
    label = data.draw(st.sampled_from([None, "correct", "wrong", "fuse: video + text"]) | texts)
    review = replace(annotation(label, correction=data.draw(texts)), score=data.draw(st.none() | st.floats()))
    reviews = (review,) if data.draw(st.booleans()) else ()
    found = build(module, decision({**SENSE, **broken}, *reviews))
    assert len(found.examples) + sum(found.unusable.values()) == 1
    split_examples(found.examples, max_holdout=9, max_dev=9, max_train=9)
    for example in found.examples:
        state = {"demos": [{**example.inputs, **example.right, "label": example.label}]}
        Program(tenant_id="a", module=module, fingerprint="f", labels=[], state=state).encode()


@pytest.mark.parametrize(
    ("module", "broken"),
    [
        ("routing", {"routing.confidence": 10**400}),
        ("routing", {"routing.query": None, "input.value": "[" * 100_000}),
        ("routing", {"routing.entities": nested(50_000)}),
        ("routing", {"routing.entities": 10**5000}),
        ("workflow", {"orchestration.execution_order": "[" * 100_000}),
        ("cross_modal", {"cross_modal.detected_modalities": [{"modality": "video", "confidence": 10**400}] * 2}),
        ("cross_modal", {"cross_modal.detected_modalities": "[" * 100_000}),
    ],
)
def test_values_beyond_all_bounds_make_a_span_unusable_and_nothing_more(module: str, broken: dict[str, Any]) -> None:
    found = build(module, decision({**SENSE, **broken}))
    assert (len(found.examples), sum(found.unusable.values())) == (0, 1)


def test_half_a_character_is_replaced_before_anything_is_made_of_the_text() -> None:
    found = build("routing", decision({**SENSE, "routing.query": f"find it {HALF}", "routing.entities": [HALF]}))
    assert found.examples[0].inputs["query"] == "find it \ufffd"
    assert found.examples[0].inputs["entities"] == '["\ufffd"]'


def test_numbers_are_finite_and_no_booleans_and_no_text() -> None:
    assert number(3) == 3.0
    assert [number(value) for value in (True, "3", None, 10**400, math.inf, math.nan)] == [None] * 6


def test_what_is_no_json_is_nothing() -> None:
    assert parse_json('{"a": [1]}') == {"a": [1]}
    assert parse_json("{'a'") is parse_json("[" * 100_000) is parse_json("1" * 5000) is None
    assert as_text(10**5000) is as_text({(): 1}) is None
