"""A judge behind a real HTTP endpoint answers the disagreements first. People decide, and are spared some reviews."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.evaluation.judge_agreement import LAST_REVIEWS, MIN_REVIEWS, agreement_with
from autoopt_pipeline.lm.metering import Meter, Role
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.records import (
    DrawnTrace,
    SequentialTestStep,
    StoredBatch,
    StoredCase,
    StoredJudged,
    Verdict,
)
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.reviews.order import to_review
from autoopt_pipeline.tenants.config import JudgeSettings, LMSettings
from autoopt_pipeline.tenants.labels import labels_of
from tests.support.llm_server import Answered, LLMServer, Sent, llm_server
from tests.support.optimizing import CONFIG, ROUTING, decisions, job
from tests.support.sequential_tests import made_step

TRUTH = decisions(600, TrafficProfile(reviewed=1.0))
UNREVIEWED = [replace(decision, annotations=()) for decision in TRUTH]
EXAMPLES = ROUTING.build_examples(labels_of(ROUTING, CONFIG), TRUTH, redact=str).examples
QUERIES = {example.span_id: normalize_query(example.query) for example in EXAMPLES}
RIGHT = {normalize_query(example.query): example.label for example in EXAMPLES}
JUDGE = "openai/judge"


def query_in(sent: Sent) -> str:
    return normalize_query(re.findall(r"\[\[ ## query ## \]\]\n(.*)", sent.question)[-1])


def says(agent: Callable[[str], str | None]) -> Callable[[Sent], Answered | None]:
    return lambda sent: Answered(
        f"[[ ## reasoning ## ]]\nknown\n\n[[ ## agent ## ]]\n{agent(query_in(sent))}\n\n"
        "[[ ## confidence ## ]]\n0.9\n\n[[ ## completed ## ]]"
    )


@pytest.fixture
def server() -> Iterator[LLMServer]:
    with llm_server() as running:
        running.answer = says(RIGHT.get)
        yield running


def optimized(
    server: LLMServer,
    artifacts: VersionStore,
    mode: str,
    given: list[LoggedDecision] = UNREVIEWED,
    calls: int = 6000,
    **lm_fields: Any,
) -> Report:
    meter = Meter(calls, 10**9)
    judge = LMSettings.model_validate({"model": JUDGE, "api_base": server.url, **lm_fields})
    config = CONFIG.model_copy(update={"judge": JudgeSettings.model_validate({"mode": mode, "lm": judge})})
    lm = metered_lm(LMSettings(model="stand-in"), meter)
    lm_judge = metered_lm(judge, meter, Role.JUDGE)
    # The coverage optimizer asks no model, so all that the judge is asked is about dev and disagreements.
    return optimize(replace(job(given, config), only="coverage"), lm, artifacts, lm_judge=lm_judge)


def drawn(artifacts: VersionStore) -> list[DrawnTrace]:
    return next(step.drawn for step in reversed(artifacts.sequential_test()) if step.drawn)


def reviewed(spans: set[str]) -> list[LoggedDecision]:
    return [truth if truth.span_id in spans else plain for truth, plain in zip(TRUTH, UNREVIEWED, strict=True)]


def remember_agreement(artifacts: VersionStore, agreed: int, differed: int) -> None:
    """An earlier test in which people reviewed what the judge had judged."""
    fields = {"incumbent_label": None, "incumbent_confidence": None, "candidate_label": None}
    cases = [
        StoredCase(
            label="a",
            incumbent_score=0.0,
            candidate_score=1.0,
            candidate_confidence=None,
            judged=StoredJudged(difference=difference, share=1.0, asked=True),
            **fields,
        )
        for difference in [1.0] * agreed + [-1.0] * differed
    ]
    batch = StoredBatch(reviewed=cases, disagreements=len(cases), known=0, agreed=[], presumed=[])
    step: SequentialTestStep = made_step("20260101T000000Z-earlier1", verdict="rejected")
    assert artifacts.add_sequential_test_step(step.model_copy(update={"batch": batch, "judge": JUDGE}))


def disagreements(artifacts: VersionStore) -> list[DrawnTrace]:
    return [trace for trace in drawn(artifacts) if not trace.alike]


def test_it_is_asked_about_the_disagreements_and_people_about_all_of_them(
    artifacts: VersionStore, server: LLMServer
) -> None:
    report = optimized(server, artifacts, "assist")
    different = disagreements(artifacts)
    labelled_dev = 100
    assert report.judge_calls == server.calls == labelled_dev + len(different)
    asked = {query_in(sent) for sent in server.sent[labelled_dev:]}
    assert asked == {QUERIES[trace.span_id] for trace in different}
    assert report.verdict is Verdict.AWAITING_REVIEWS  # whatever it said
    assert all(trace.is_asked and trace.judged for trace in different)
    assert f"{JUDGE} judged {len(different)} disagreements, and people are asked about {len(different)}" in " ".join(
        report.notes
    )


def test_reviews_show_how_often_people_agree_with_it(artifacts: VersionStore, server: LLMServer) -> None:
    optimized(server, artifacts, "assist")
    before = server.calls
    report = optimized(server, artifacts, "assist", reviewed({trace.span_id for trace in to_review(drawn(artifacts))}))
    assert report.verdict is Verdict.PROMOTED, report.reason
    assert server.calls == before
    agreement = agreement_with(JUDGE, artifacts.sequential_test_steps())
    assert agreement.agreed == agreement.reviews == LAST_REVIEWS < len(disagreements(artifacts))
    assert report.gate and not report.gate.comparison.by_judge


def test_a_judge_that_nobody_knows_spares_nothing(artifacts: VersionStore, server: LLMServer) -> None:
    optimized(server, artifacts, "calibrated")
    assert all(trace.is_asked for trace in disagreements(artifacts))


def test_a_judge_that_people_agreed_with_spares_half_and_more(artifacts: VersionStore, server: LLMServer) -> None:
    remember_agreement(artifacts, MIN_REVIEWS, 0)
    report = optimized(server, artifacts, "calibrated")
    different, asked = disagreements(artifacts), to_review(drawn(artifacts))
    assert report.verdict is Verdict.AWAITING_REVIEWS
    assert sum(trace.is_asked for trace in different) < 0.6 * len(different)
    for trace in different:
        if trace.judged and trace.judged.candidate_score < trace.judged.incumbent_score:
            assert not trace.is_asked
    report = optimized(server, artifacts, "calibrated", reviewed({trace.span_id for trace in asked}))
    assert report.verdict is Verdict.PROMOTED, report.reason
    assert report.gate
    comparison = report.gate.comparison
    assert comparison.by_judge + comparison.reviews >= len(different)
    manifest = artifacts.manifest(report.version or "")
    assert manifest
    assert (manifest.judge_lm, manifest.gate["by_judge"]) == (JUDGE, comparison.by_judge)


def test_a_judge_that_always_says_what_the_candidate_says_promotes_nothing(
    artifacts: VersionStore, server: LLMServer
) -> None:
    remember_agreement(artifacts, MIN_REVIEWS, 0)
    optimized(server, artifacts, "calibrated")
    answers = {trace.span_id: (trace.candidate.values or {}).get("agent") for trace in drawn(artifacts)}
    incumbents = {trace.span_id: (trace.incumbent.values or {}).get("agent") for trace in drawn(artifacts)}
    queries = {QUERIES[span]: agent for span, agent in answers.items()}
    other = VersionStore(artifacts._files, "other", "routing")
    remember_agreement(other, MIN_REVIEWS, 0)
    server.answer = says(lambda query: queries.get(query) or RIGHT[query])
    assert optimized(server, other, "calibrated").verdict is Verdict.AWAITING_REVIEWS
    assert {trace.span_id for trace in drawn(other)} == set(answers)
    asked = {trace.span_id for trace in to_review(drawn(other))}
    assert len(asked) < len(disagreements(other))
    people = [
        replace(truth, annotations=tuple(replace(a, label=incumbents[truth.span_id]) for a in truth.annotations))
        if truth.span_id in asked
        else plain
        for truth, plain in zip(TRUTH, UNREVIEWED, strict=True)
    ]
    report = optimized(server, other, "calibrated", people)
    assert report.verdict is Verdict.REJECTED, report.reason
    assert other.active() is None


def test_a_judge_that_people_no_longer_agree_with_is_refused(artifacts: VersionStore, server: LLMServer) -> None:
    remember_agreement(artifacts, 50, 10)
    report = optimized(server, artifacts, "calibrated")
    assert all(trace.is_asked for trace in disagreements(artifacts))
    assert f"people agree with {JUDGE} on 50 of 60 disagreements" in " ".join(report.notes)


def test_people_are_asked_where_its_answer_cannot_be_read(artifacts: VersionStore, server: LLMServer) -> None:
    remember_agreement(artifacts, MIN_REVIEWS, 0)
    agents = iter(range(10**6))
    told = says(RIGHT.get)
    server.answer = lambda sent: told(sent) if next(agents) % 2 else Answered("who knows")
    report = optimized(server, artifacts, "calibrated")
    different = disagreements(artifacts)
    unread = [trace for trace in different if not trace.judged]
    assert unread
    assert all(trace.is_asked for trace in unread)
    assert f"{len(unread)} of {len(different)} answers of {JUDGE} could not be read" in report.notes
    asked = to_review(drawn(artifacts))
    assert report.reason.startswith(f"{sum(not trace.alike for trace in asked)} of {len(different)} disagreements wait")
    report = optimized(server, artifacts, "calibrated", reviewed({trace.span_id for trace in asked}))
    assert report.verdict is Verdict.PROMOTED, report.reason


def test_it_is_asked_in_its_own_answer_format(artifacts: VersionStore, server: LLMServer) -> None:
    server.answer = lambda sent: None  # the server answers as the format asks for
    server.enforces_schema = True
    optimized(server, artifacts, "assist", answer_format="json_schema")
    assert all("response_format" in sent.body for sent in server.sent)


def test_without_budget_for_it_people_judge_all(artifacts: VersionStore, server: LLMServer) -> None:
    spent = optimized(server, artifacts, "assist").lm_calls
    other = VersionStore(artifacts._files, "other", "routing")
    report = optimized(server, other, "calibrated", calls=spent - 10)
    assert "the budget was spent before the judge had answered" in " ".join(report.notes)
    assert report.verdict is Verdict.AWAITING_REVIEWS
    assert not any(trace.judged for trace in drawn(other))
