"""A query that a limit on attributes has cut is counted, and not learnt as if it were whole."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import SpanLimits, TracerProvider

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label, LoggedDecision
from autoopt_pipeline.serving import trace_to_phoenix
from autoopt_pipeline.serving._forms import span_attributes
from autoopt_pipeline.span_contract import ROUTING, project_name
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.reader import collect
from autoopt_pipeline.traces.truncation import mark_cut
from tests.support.sample_decisions import T0

SPEC = get_module("routing")
LABELS = [Label("a"), Label("b")]
CUT = "query was cut off (a limit on the length of attributes)"


def flat(query: str) -> dict[str, Any]:
    """As applications with attributes of their own write a decision."""
    return {"routing.query": query, "routing.chosen_agent": "a", "routing.confidence": 0.9}


def read(spans: list[dict[str, Any]]) -> list[LoggedDecision]:
    return [LoggedDecision(f"{i:016x}", f"{i:032x}", T0, False, span) for i, span in enumerate(spans)]


def learnt(spans: list[dict[str, Any]]) -> tuple[list[str], dict[str, int]]:
    """The queries that are learnt, and what is not learnt, by reason."""
    found = SPEC.build_examples(LABELS, mark_cut(read(spans), ROUTING), redact=str)
    return [example.query for example in found.examples], found.unusable


def cut(span: dict[str, Any], limit: int) -> dict[str, Any]:
    return {name: value[:limit] if isinstance(value, str) else value for name, value in span.items()}


@given(st.lists(st.text('abc {}[]"\\é\n', min_size=1, max_size=80), min_size=1, max_size=8), st.integers(20, 120))
def test_of_spans_as_serving_writes_them_no_cut_query_is_learnt_and_every_whole_one_is(
    queries: list[str], limit: int
) -> None:
    queries = [f"where is {query}" for query in queries]
    whole = [span_attributes(ROUTING, {"query": query}, {"agent": "a"}, 0.9) for query in queries]
    spans = [cut(span, limit) for span in whole]
    assert all(json.loads(str(span["input.value"])) for span in whole)
    found, unusable = learnt(spans)
    # Of exactly the limit's length nobody can tell.
    assert found == [query for query in queries if len(query) < limit]
    assert unusable.get(CUT, 0) == sum(len(query) >= limit for query in queries)


@pytest.mark.parametrize("limit", [32, 127, 128, 250, 255, 1000, 1024])
def test_texts_without_json_betray_a_limit_that_is_usual(limit: int) -> None:
    queries = [f"{number} {'word ' * number}" for number in range(limit // 8, limit // 2)]
    found, unusable = learnt([cut(flat(query), limit) for query in queries])
    assert found == [query for query in queries if len(query) < limit]
    assert unusable == {CUT: len(queries) - len(found)}
    assert unusable[CUT] > 2


@pytest.mark.parametrize(
    "queries",
    [
        [f"question number {number}" for number in range(10, 99)],  # all of one length, as generated ones are
        ["x" * 64] * 9,  # one text, however often
        [f"{number:064}" for number in range(2)],  # two are no pile
        [f"{number:064}" for number in range(9)] + ["y" * 65],  # a longer one says that there is no limit
        [f"{number:03}{'z' * (length - 3)}" for length in range(56, 65) for number in range(9)],  # as many are shorter
        ['["tag"] where is it?', "{draft} hello", '{"a": None} is wrong', "[urgent] see {this"],
    ],
)
def test_what_is_no_limit_is_learnt(queries: list[str]) -> None:
    assert learnt([flat(query) for query in queries]) == (queries, {})


def test_optional_inputs_that_are_cut_are_not_learnt_either_and_one_that_was_never_there_is_no_loss() -> None:
    entities = json.dumps([{"name": "x" * 90}])
    both = {**flat("where is it?"), "routing.entities": entities[:50], "input.value": '{"query": "where is it?", "e'}
    assert learnt([both])[1] == {CUT.replace("query", "entities"): 1}
    long = {**flat("where is it?"), "input.value": json.dumps({"query": "where is it?", "other": "y" * 90})[:50]}
    assert learnt([long]) == (["where is it?"], {})


def test_a_cut_json_alone_is_told_as_cut_and_any_other_broken_one_is_not() -> None:
    answered = {"output.value": json.dumps({"agent": "a", "confidence": 0.9})}
    asked = json.dumps({"query": 'a "report" of M\u00fcller\\s', "context": {"deep": [-1.5e-9, True, False, None]}})
    for end in range(len('{"'), len(asked)):
        assert learnt([{**answered, "input.value": asked[:end]}])[1] == {CUT: 1}, asked[:end]
    assert learnt([{**answered, "input.value": "{'query': 'x'}"}])[1] == {"no query": 1}
    assert learnt([{**answered, "input.value": '{"query": NULL}'}])[1] == {"no query": 1}


def test_what_the_sdk_cuts_on_its_way_to_phoenix_is_not_learnt(phoenix: Phoenix, tenant: str) -> None:
    provider = TracerProvider(span_limits=SpanLimits(max_span_attribute_length=64))
    trace_to_phoenix(phoenix.endpoint, tracer_provider=provider)
    queries = ["short and whole", "a longer one, which is cut " * 4]
    for query in queries:
        attributes = span_attributes(ROUTING, {"query": query}, {"agent": "a"}, 0.9)
        attributes["autoopt.tenant_id"] = tenant
        provider.get_tracer("t").start_span(ROUTING.span_name, attributes=attributes).end()
    provider.shutdown()
    now = datetime.now(UTC)
    for _ in range(200):
        if phoenix.project(project_name(tenant)):
            seen = collect(phoenix, tenant, SPEC, start=now - timedelta(hours=1), end=now + timedelta(minutes=1))
            if len(seen.decisions) == len(queries):
                break
    found = SPEC.build_examples(LABELS, seen.decisions)
    assert [example.query for example in found.examples] == ["short and whole"]
    assert found.unusable == {CUT: 1}
    assert found.malformed == 1
