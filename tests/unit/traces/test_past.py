"""What a run in the past would have read."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.scheduling.conditions import RunOutcome
from autoopt_pipeline.traces.client import Project
from autoopt_pipeline.traces.counts import Wanted
from autoopt_pipeline.traces.past import PastTraces
from autoopt_pipeline.traces.reader import Spans
from tests.support.sample_decisions import T0, annotation, decision

ROUTING, UNIFIED = get_module("routing"), get_module("unified")
PROJECT = Project("P", "acme-cogniverse-routing", T0, T0 + timedelta(days=1), {"routing_annotation": 99})


def routed(minute: int, query: str = "find it", *, reviewed: int | None = None) -> LoggedDecision:
    reviews = () if reviewed is None else (annotation("correct", minute=reviewed),)
    made = decision({"routing.query": query, "routing.chosen_agent": "search_agent"}, *reviews)
    return replace(made, span_id=f"{minute:016x}", trace_id=f"{minute:032x}", time=T0 + timedelta(minutes=minute))


def past(*spans: LoggedDecision) -> PastTraces:
    return PastTraces(ROUTING, PROJECT, Spans(spans, {}))


def collected(traces: PastTraces, minute: int) -> Sequence[LoggedDecision]:
    at = T0 + timedelta(minutes=minute)
    return traces.collected(start=T0, end=at, at=at).decisions


def test_a_span_and_its_review_are_read_from_when_they_were_there() -> None:
    traces = past(routed(1, reviewed=5), routed(3))
    assert [len(each.annotations) for each in collected(traces, 2)] == [0]
    assert [len(each.annotations) for each in collected(traces, 5)] == [1, 0]
    assert [len(each.annotations) for each in traces.spans.own] == [1, 0]


def test_the_counts_are_those_of_the_moment() -> None:
    traces = past(routed(1, reviewed=2), routed(3, reviewed=9), routed(5, reviewed=6))
    first = traces.collected(start=T0, end=T0 + timedelta(minutes=4), at=T0 + timedelta(minutes=4))
    assert first.annotations.total == 1
    outcome = RunOutcome(T0 + timedelta(minutes=4), first.annotations)
    wanted = Wanted("acme", ROUTING, outcome.window_end, outcome)

    def counted(minute: int) -> tuple[int, int]:
        at = T0 + timedelta(minutes=minute)
        found = traces.evidence(wanted, until=at, at=at)
        return found.new_traces, found.new_annotations

    assert [counted(5), counted(6), counted(9)] == [(0, 0), (1, 1), (1, 2)]


def test_later_texts_do_not_make_an_earlier_one_look_cut_off() -> None:
    """Several of the longest texts with one usual length are a sign of a limit."""
    early = [routed(1, "a".ljust(100, "x"))]
    late = [routed(10 + number, f"{number}".ljust(100, "y")) for number in range(5)]
    traces = past(*early, *late)
    assert [bool(each.cut) for each in collected(traces, 5)] == [False]
    assert {bool(each.cut) for each in collected(traces, 60)} == {True}


def test_a_composed_decision_has_the_parts_of_the_moment() -> None:
    spans = {part.name: [] for part in UNIFIED.parts} | {"routing": [routed(1, reviewed=5), routed(8)]}
    traces = PastTraces(UNIFIED, PROJECT, Spans([routed(1)], spans))
    at = T0 + timedelta(minutes=3)
    before = traces.collected(start=T0, end=at, at=at)
    assert [len(each.parts["routing"].annotations) for each in before.decisions] == [0]
    assert before.annotations.total == 0
    after = traces.collected(start=T0, end=at, at=at + timedelta(minutes=3))
    assert [len(each.parts["routing"].annotations) for each in after.decisions] == [1]
    assert after.annotations.total == traces.reviews == 1
