"""What a person reads of a run: warnings about the traffic, and a report that no user's text can change."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example as also
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.runner import Answer
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label, LoggedDecision
from autoopt_pipeline.optimization.report import CandidateStats, Change, ComparedExample, Report, changes_between
from autoopt_pipeline.orchestration.run_report import data_check, report_metadata
from autoopt_pipeline.registry.program_cost import ProgramCost
from autoopt_pipeline.scheduling.annotation_counts import AnnotationsSeen
from autoopt_pipeline.traces.reader import Collected
from tests.support.sample_decisions import annotation, decision, example
from tests.support.verdicts import REPORT

ROUTED = {"routing.query": "where is it", "routing.chosen_agent": "a", "routing.confidence": 0.9}


@pytest.mark.parametrize(
    ("given_decision", "malformed"),
    [
        (decision({**ROUTED, "routing.query": None}), 1),
        (decision({**ROUTED, "routing.query": 42}), 1),
        (decision({**ROUTED, "routing.confidence": "high"}), 1),
        (decision(ROUTED, annotation("wrong")), 0),
        (decision({**ROUTED, "routing.confidence": 0.1}), 0),
        (decision(ROUTED, failed=True), 0),
    ],
)
def test_a_span_that_is_as_promised_and_teaches_nothing_is_not_malformed(
    given_decision: LoggedDecision, malformed: int
) -> None:
    found = get_module("routing").build_examples([Label("a"), Label("b")], [given_decision])
    assert found.examples == ()
    assert found.malformed == malformed


def test_reviews_without_a_right_answer_are_not_called_unreadable() -> None:
    judged_wrong = {"judged wrong or unclear, with no right answer given": 40}
    check = data_check(replace(REPORT, provenance={"human": 60}, unusable=judged_wrong), ["a", "b"])
    assert check.passed
    check = data_check(replace(REPORT, provenance={"human": 60}, unusable={"no query": 40}, malformed=40), ["a", "b"])
    assert check.description == "40 of 100 spans cannot be read; see skipped_spans"


def test_a_label_with_hardly_any_examples_is_named_only_where_labels_are_the_classes() -> None:
    check = data_check(replace(REPORT, balance={"a": 100}), ["a", "b"])
    assert check.description == "hardly any examples of b"
    assert data_check(replace(REPORT, balance={"a > b": 60, "a + b": 40}), ["a", "b"]).passed


hostile = st.text(st.sampled_from("\\`*_~[]()!<>&|#x: \n") | st.characters(), max_size=30) | st.sampled_from(
    ["[here](http://evil.example)", "![x](http://evil.example/x.png)", "<img src=x onerror=alert(1)>", "a | b", "\\|"]
)


def metadata_of(report: Report) -> dict[str, Any]:
    collected = Collected("p", (), AnnotationsSeen(0))
    metadata = report_metadata(
        report,
        collected,
        config_version=1,
        labels=[],
        phoenix_endpoint="http://phoenix",
        comparison_url=None,
        overrides={},
    )
    return {name: value.value for name, value in metadata.items()}


def markdown(report: Report) -> str:
    return str(metadata_of(report)["report"])


def test_the_cost_of_a_program_and_of_the_run_are_reported_where_they_are_known() -> None:
    cost = ProgramCost(
        decisions=9, lm_calls=1, input_tokens=300, output_tokens=12, cached_tokens=0, dollars=0.00012, timed=0
    )
    tried = CandidateStats("coverage-16", 0.7, 9, 0, 9, None, cost=cost)
    report = replace(REPORT, lm_dollars=0.25, costs={"incumbent": cost}, tried=(tried,), incumbent_dev_score=0.5)
    metadata = metadata_of(report)
    assert metadata["lm_dollars"] == 0.25
    assert ProgramCost.model_validate(metadata["costs"]["incumbent"]) == cost
    assert "312 tokens, about $0.00012, time unknown" in metadata["report"]
    assert not {"lm_dollars", "costs"} & metadata_of(REPORT).keys()


def rendered(text: str) -> list[Token]:
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [token for block in blocks for token in (block, *(block.children or ()))]


def reporting(text: str) -> Report:
    bad, good = ScoredAnswer(0.0, text, None), ScoredAnswer(1.0, text, None)
    row = ComparedExample(example(text, text), Answer({}, None), Answer({}, None), PairedCase(text, bad, good))
    change = Change("decide", 1, (text,), (text,), "\n".join(f"+{line}" for line in text.splitlines()))
    return replace(REPORT, reason=text, compared=(row,), changes=(change,), notes=(f"note {text}",))


@given(hostile)
@also("\ud800")
def test_no_text_of_a_user_can_be_more_than_text(text: str) -> None:
    tokens, plain = rendered(markdown(reporting(text))), rendered(markdown(reporting("x")))
    kinds = [token.type for token in tokens]
    assert not {"html_inline", "html_block", "image", "code_inline", "em_open", "s_open", "hardbreak"}.intersection(
        kinds
    )
    assert kinds.count("td_open") == [token.type for token in plain].count("td_open")
    links = [token.attrs["href"] for token in tokens if token.type == "link_open"]
    assert all(re.match(r"http://phoenix/projects/p/traces/", str(link)) for link in links)


def test_a_trace_id_that_an_application_made_up_leads_nowhere_else() -> None:
    made_up = replace(example("x", "x"), trace_id="x) ![y](http://evil/y.png")
    row = replace(reporting("x").compared[0], example=made_up)
    tokens = rendered(markdown(replace(reporting("x"), compared=(row,))))
    assert not [token for token in tokens if token.type == "image"]


@given(hostile)
def test_what_a_user_wrote_is_read_as_it_was_written(text: str) -> None:
    tokens = rendered(markdown(replace(REPORT, reason=text)))
    shown = " ".join(text.split()).replace("\0", "\ufffd")
    assert shown in "".join(token.content for token in tokens if token.type == "text")


def test_changed_lines_of_instructions_are_all_shown_whatever_they_begin_with() -> None:
    before, after = (get_module("modality").build_program(get_module("modality").labels or ()) for _ in range(2))
    for program, words in ((before, "keep\n-- one\n++ two"), (after, "keep\n--- three\n@@ four")):
        for predictor in program.predictors():
            predictor.signature = predictor.signature.with_instructions(words)
    (change,) = changes_between(before, after)
    assert change.instructions.splitlines() == ["--- one", "-++ two", "+--- three", "+@@ four"]
