"""The stand-in's answers to signatures with several outputs, through DSPy's own adapters and parsers."""

import json
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.stand_in_answers import AGENTS, FUSION, FUSIONS, PLAN, PLANS, ask, fusions, plans


@pytest.mark.parametrize("adapter", [None, dspy.JSONAdapter()], ids=["chat", "json"])
def test_a_list_is_chosen_as_one_value_in_its_order(adapter: dspy.Adapter | None) -> None:
    answer = ask(PLAN, plans(), adapter=adapter, query="find the handbook and sum it up", available=list(AGENTS))
    assert (answer.agents, answer.pattern) == (["search_agent", "summary_agent"], "sequential")
    answer = ask(PLAN, plans(), adapter=adapter, query="sum up payroll while you chart it", available=list(AGENTS))
    assert (answer.agents, answer.pattern) == (["summary_agent", "report_agent"], "parallel")


@pytest.mark.parametrize("order", [("fuse", "primary", "secondary", "confidence"), ("confidence", "secondary", "fuse")])
def test_several_outputs_agree_with_each_other_in_any_order(order: tuple[str, ...]) -> None:
    fields = {"query": FUSION["query"], **{name: FUSION[name] for name in order}}
    answer = ask(fields, fusions(), query="that webcast and the transcript")
    assert (answer.fuse, answer.secondary) == ("fuse", "text")
    assert ask(fields, fusions(), query="a jingle only").secondary == "none"


def test_further_outputs_are_taken_from_demos_that_made_the_same_choice() -> None:
    query = "only a ringtone, only a jingle, for that webcast twice over"
    assert ask(FUSION, fusions(), query=query).toDict().items() >= {"fuse": "single", "primary": "audio"}.items()
    answer = ask(FUSION, fusions(), query="the webcast and its transcript, for that ringtone")
    assert (answer.fuse, answer.primary) == ("fuse", "video")


def test_without_demos_a_list_names_the_items_that_the_query_speaks_of_in_its_order() -> None:
    def agents(query: str) -> list[str]:
        return ask(PLAN, [], query=query, available=[]).agents

    assert agents("a summary, then a report") == ["summary_agent", "report_agent"]
    assert agents("reporting, then searching") == ["report_agent", "search_agent"]
    assert agents("hello, agent") == ["search_agent"]


def test_an_item_is_preferred_of_which_the_query_says_more() -> None:
    fields = {
        **PLAN,
        "agents": (list[Literal["detailed_report_agent", "report_agent", "search_agent"]], dspy.OutputField()),
    }
    assert ask(fields, [], query="a report", available=[]).agents == ["report_agent"]
    assert ask(fields, [], query="a detailed report", available=[]).agents == ["detailed_report_agent"]


def test_an_input_that_never_differs_does_not_count() -> None:
    def answered(available: list[str], query: str) -> tuple[list[str], float]:
        demos = [{**demo, "available": available} for demo in plans()]
        answer = ask(PLAN, demos, query=query, available=available)
        return answer.agents, answer.confidence

    for query in ("find the handbook and sum it up", "chart it", "hello"):
        assert answered([], query) == answered(["find_agent", "chart_agent", "sum_agent"], query)


def test_inputs_of_any_name_count() -> None:
    fields = {
        "modality": (str, dspy.InputField()),
        "scores": (dict[str, float], dspy.InputField()),
        "fuse": FUSION["fuse"],
    }
    demos = [
        {"modality": "mixed", "scores": {"video": 0.5, "text": 0.5}, "fuse": "fuse"},
        {"modality": "plain", "scores": {"audio": 0.9}, "fuse": "single"},
    ]
    assert ask(fields, demos, modality="plain", scores={"audio": 0.8}).fuse == "single"
    assert ask(fields, demos, modality="mixed", scores={"text": 0.4, "video": 0.6}).fuse == "fuse"


def test_a_query_that_is_the_only_demo_word_for_word_is_answered_like_it() -> None:
    assert ask(FUSION, fusions()[3:4], query="only a ringtone").fuse == "single"


def test_demos_with_values_that_are_not_allowed_any_more_do_not_vote() -> None:
    demos = [*plans(), {"query": "find it", "available": list(AGENTS), "agents": ["gone_agent"], "pattern": "odd"}]
    answer = ask(PLAN, demos, query="find it", available=list(AGENTS))
    assert answer.agents == ["search_agent", "summary_agent"]
    assert answer.pattern == "sequential"


def test_labels_may_hold_brackets_quotes_and_colons() -> None:
    odd = ("a (b): c", "it's", 'say "x"', "[y]")
    fields = {
        "query": PLAN["query"],
        "one": (Literal[odd], dspy.OutputField()),  # ty: ignore[invalid-type-form]
        "many": (list[Literal[odd]], dspy.OutputField()),  # ty: ignore[invalid-type-form]
    }
    demos = [{"query": f"word{n}", "one": label, "many": [label, "it's"]} for n, label in enumerate(odd)]
    for n, label in enumerate(odd):
        answer = ask(fields, demos, query=f"word{n}")
        assert (answer.one, answer.many) == (label, [label, "it's"])


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=80), st.integers(0, len(PLANS)), st.integers(0, len(FUSIONS)))
def test_whatever_is_asked_the_answer_is_valid_and_the_same_again(query: str, plans_shown: int, fused: int) -> None:
    for fields, demos in ((PLAN, plans()[:plans_shown]), (FUSION, fusions()[:fused])):
        inputs: dict[str, Any] = {"query": query, "available": list(AGENTS)} if fields is PLAN else {"query": query}
        first, again = (ask(fields, demos, **inputs) for _ in range(2))
        assert 0 <= first.confidence <= 1
        assert json.dumps(first.toDict()) == json.dumps(again.toDict())
