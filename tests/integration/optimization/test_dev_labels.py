"""Without reviews, the application agrees with its own answers; a teacher's labels let a better candidate be seen."""

import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from autoopt_pipeline.devtools.traffic import TrafficProfile, sample_truths_for
from autoopt_pipeline.evaluation.split import side_of
from autoopt_pipeline.lm.metering import Meter, Role
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import LMSettings
from tests.support.llm_server import Answered, LLMServer, Sent, llm_server
from tests.support.optimizing import decisions, job

HABITS = TrafficProfile(reviewed=0.0, complains=0.0)
TRUTH = {normalize_query(t.query): t.answers["agent"] for t in sample_truths_for(HABITS, 600, random.Random(1))}


def query_in(sent: Sent) -> str:
    return normalize_query(re.findall(r"\[\[ ## query ## \]\]\n(.*)", sent.question)[-1])


def right_answer(sent: Sent) -> Answered:
    return Answered(
        f"[[ ## reasoning ## ]]\nknown\n\n[[ ## agent ## ]]\n{TRUTH[query_in(sent)]}\n\n"
        "[[ ## confidence ## ]]\n0.9\n\n[[ ## completed ## ]]"
    )


@pytest.fixture
def server() -> Iterator[LLMServer]:
    with llm_server() as running:
        running.answer = lambda sent: right_answer(sent) if "[[ ## query ## ]]" in sent.question else None
        yield running


def optimized(habits: TrafficProfile, server: LLMServer | None, artifacts: VersionStore) -> Report:
    meter = Meter(6000, 10**9)
    lm = metered_lm(LMSettings(model="stand-in"), meter)
    teacher: MeteredLM | None = None
    if server:
        teacher = metered_lm(LMSettings(model="openai/teacher", api_base=server.url), meter, Role.TEACHER)
    # Only optimizers that ask no teacher, so that all that it is asked is about dev.
    given = replace(job(decisions(600, habits)), only="coverage")
    return optimize(given, lm, artifacts, teacher=teacher)


def test_the_teacher_labels_what_nobody_reviewed_on_the_dev_side_and_nothing_else(
    artifacts: VersionStore, server: LLMServer
) -> None:
    report = optimized(HABITS, server, artifacts)
    asked = [query_in(sent) for sent in server.sent]
    assert 50 < len(asked) == len(set(asked)) <= 100
    assert {side_of(query) for query in asked} == {"dev"}
    assert f"openai/teacher labelled {len(asked)} dev examples that nobody has reviewed" in report.notes
    assert report.teacher_calls == len(asked)
    assert report.verdict is Verdict.AWAITING_REVIEWS  # its labels choose and prove nothing
    # The application is right on seven tenths, and its own successes would have said that it always is.
    assert report.tried[0].judged_on <= len(asked)


def test_where_people_have_reviewed_enough_it_is_not_asked(artifacts: VersionStore, server: LLMServer) -> None:
    optimized(TrafficProfile(reviewed=0.8), server, artifacts)
    assert server.calls == 0


def test_without_a_teacher_of_its_own_nobody_labels(artifacts: VersionStore) -> None:
    report = optimized(HABITS, None, artifacts)
    assert not any("labelled" in note for note in report.notes)
    assert report.teacher_calls == 0


def test_a_teacher_that_cannot_be_read_labels_nothing(artifacts: VersionStore, server: LLMServer) -> None:
    server.answer = lambda sent: Answered("who knows")
    report = optimized(HABITS, server, artifacts)
    assert "openai/teacher labelled 0 dev examples that nobody has reviewed" in report.notes
    assert report.verdict is Verdict.AWAITING_REVIEWS
