"""While two versions serve side by side, a run lets both answer new traces, and people are asked where they differ."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, TrafficProfile
from autoopt_pipeline.evaluation.runner import dspy_example
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.modules.named_model import naming
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.modules.spec import Annotation, LoggedDecision
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.rollout_comparison import ENOUGH_TO_REVIEW, MOST_PER_ROLLOUT, draw_for_rollout
from autoopt_pipeline.registry.records import DrawnTrace, Program
from autoopt_pipeline.registry.rollout_records import RolloutDraw, disagreements
from autoopt_pipeline.registry.serialization import deserialize, serialize
from autoopt_pipeline.registry.transitions import Rollout, active_rollout
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.reviewed import compare_by_reviews
from autoopt_pipeline.rollouts.rollout import start_canary
from autoopt_pipeline.tenants.config import LMSettings, RolloutPolicy, with_field
from autoopt_pipeline.tenants.labels import labels_of
from tests.support.llm_server import LLMServer
from tests.support.optimizing import CONFIG, ROUTING, decisions, stand_in
from tests.support.stored_programs import bring, store

LABELS = labels_of(ROUTING, CONFIG)
BASELINE = ROUTING.build_program(LABELS)
TRUTH = decisions(900, TrafficProfile(reviewed=1.0, malformed=0.0))
"""Every decision with a person's annotation that names the right answer."""


def program(*, wrong_every: int = 0) -> Program:
    """Forty demos; every so many of them show a wrong agent."""
    built, names = ROUTING.build_program(LABELS), list(SAMPLE_AGENTS)
    demos = [dspy_example(ROUTING, example) for example in ROUTING.build_examples(LABELS, TRUTH[:40]).examples]
    for demo in demos[::wrong_every] if wrong_every else []:
        demo["agent"] = names[(names.index(demo["agent"]) + 1) % len(names)]
    for predictor in built.predictors():
        predictor.demos = demos
    return serialize(ROUTING, "acme", LABELS, built)


@pytest.fixture
def rollout(artifacts: VersionStore) -> Rollout:
    """The newer version learnt some wrong things; the older one keeps a tenth of the requests."""
    older = store(artifacts, program(), 1, active=True)
    newer = store(artifacts, program(wrong_every=4), 2)
    bring(artifacts, newer, RolloutPolicy())
    begun = active_rollout(artifacts.last_transition())
    assert begun and (begun.version, begun.against) == (newer, older)
    return begun


def served(rollout: Rollout, *, reviewed: Iterable[str] = ()) -> list[LoggedDecision]:
    """New traces of the rollout. People were asked about these spans."""
    spans, asked = set(reviewed), {"sampling": "disagreement"}
    return [
        replace(
            each,
            time=rollout.transition.at + timedelta(seconds=place + 1),
            annotations=tuple(replace(a, metadata=asked) for a in each.annotations if each.span_id in spans),
        )
        for place, each in enumerate(TRUTH[100:])
    ]


def a_job(given: list[LoggedDecision], run_id: str = "run") -> OptimizationJob:
    start = min(each.time for each in given)
    return OptimizationJob(ROUTING, CONFIG, given, start, datetime.now(UTC) + timedelta(days=1), run_id)


def drawn_by(job: OptimizationJob, rollout: Rollout, artifacts: VersionStore, lm: MeteredLM | None = None) -> list[str]:
    lm = lm or stand_in()
    requests = ROUTING.build_requests(LABELS, job.decisions)
    return draw_for_rollout(job, rollout, requests, BASELINE, lm, artifacts, PhaseTracker(lm.meter))


def draws(artifacts: VersionStore, rollout: Rollout) -> list[RolloutDraw]:
    return artifacts.rollout_draws(rollout.transition)


def asked(artifacts: VersionStore, rollout: Rollout) -> list[DrawnTrace]:
    return disagreements(draws(artifacts, rollout))


def test_both_versions_answer_traces_that_came_since_and_the_disagreements_are_asked_about(
    artifacts: VersionStore, rollout: Rollout
) -> None:
    before = [replace(each, time=rollout.transition.at - timedelta(seconds=1)) for each in TRUTH[100:500]]
    lm, new = stand_in(), served(rollout)[400:]
    (note,) = drawn_by(a_job([*before, *new]), rollout, artifacts, lm)
    (draw,) = draws(artifacts, rollout)
    assert len(draw.drawn) == 100
    assert lm.meter.calls == 200
    assert {trace.span_id for trace in draw.drawn} <= {each.span_id for each in new}
    different = asked(artifacts, rollout)
    assert different == [trace for trace in draw.drawn if not trace.alike]
    assert 5 <= len(different) <= 60
    assert (
        note
        == f"both versions of the rollout answered 100 traces; people are asked about {len(different)} disagreements"
    )
    assert [trace.time for trace in different] != sorted(trace.time for trace in different)


def test_a_version_that_names_a_model_is_answered_by_it(artifacts: VersionStore, server: LLMServer) -> None:
    other = "openai/other"
    store(artifacts, program(), 1, active=True)
    named = serialize(ROUTING, "acme", LABELS, naming(deserialize(ROUTING, LABELS, program()), other))
    bring(artifacts, store(artifacts, named, 2), RolloutPolicy())
    begun = active_rollout(artifacts.last_transition())
    assert begun
    lm = stand_in()
    candidate = metered_lm(LMSettings(model=other, api_base=server.url), lm.meter)
    (refused,) = drawn_by(a_job(served(begun)), begun, artifacts, lm)
    assert f"not compared by reviews: acme/routing: the program asks {other}, which is not given here" in refused
    drawn_by(a_job(served(begun)), begun, artifacts, replace(lm, others={other: candidate}))
    (draw,) = draws(artifacts, begun)
    assert server.calls == len(draw.drawn) == lm.meter.calls - server.calls


def test_reviews_of_the_disagreements_show_that_the_newer_version_is_worse(
    artifacts: VersionStore, rollout: Rollout
) -> None:
    drawn_by(a_job(served(rollout)), rollout, artifacts)
    different = asked(artifacts, rollout)
    reviewed = {each.span_id: each for each in served(rollout, reviewed={trace.span_id for trace in different})}
    found = compare_by_reviews(ROUTING, LABELS, different, reviewed)
    assert len(found.gains) == len(different)
    assert sum(found.gains) < -0.5 * sum(abs(gain) for gain in found.gains)


def test_no_query_is_drawn_twice_and_a_rollout_has_enough_at_some_time(
    artifacts: VersionStore, rollout: Rollout
) -> None:
    for run in range(5):
        reviewed = {trace.span_id for trace in asked(artifacts, rollout)}
        drawn_by(a_job(served(rollout, reviewed=reviewed), f"run {run}"), rollout, artifacts)
    queries = {each.span_id: normalize_query(str(each.attributes["routing.query"])) for each in served(rollout)}
    drawn = [queries[trace.span_id] for draw in draws(artifacts, rollout) for trace in draw.drawn]
    assert len(drawn) == len(set(drawn)) == min(MOST_PER_ROLLOUT, len(set(queries.values())))


def test_an_attempt_whose_run_was_lost_does_not_draw_again(artifacts: VersionStore, rollout: Rollout) -> None:
    few = served(rollout)[:60]
    drawn_by(a_job(few, "lost"), rollout, artifacts)
    again, lm = replace(a_job(served(rollout), "second"), attempt="lost", lost_runs=frozenset({"lost"})), stand_in()
    assert drawn_by(again, rollout, artifacts, lm) == []
    assert (lm.meter.calls, len(draws(artifacts, rollout))) == (0, 1)


def test_the_same_traces_are_drawn_if_a_run_was_lost_before_it_could_record_them(
    artifacts: VersionStore, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []
    with monkeypatch.context() as patched:
        patched.setattr(VersionStore, "add_rollout_draw", lambda self, begun, draw: recorded.append(draw))
        drawn_by(a_job(served(rollout), "lost"), rollout, artifacts)
    drawn_by(a_job(served(rollout), "second"), rollout, artifacts)
    (draw,) = draws(artifacts, rollout)
    assert draw.drawn == recorded[0].drawn


def test_two_runs_at_once_record_one_draw(
    artifacts: VersionStore, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(VersionStore, "rollout_draws", lambda self, begun: [])
        drawn_by(a_job(served(rollout), "one"), rollout, artifacts)
        (note,) = drawn_by(a_job(served(rollout), "two"), rollout, artifacts)
    assert "another run has drawn" in note
    assert [draw.attempt for draw in draws(artifacts, rollout)] == ["one"]


def test_while_many_disagreements_wait_no_more_are_drawn(artifacts: VersionStore, rollout: Rollout) -> None:
    waiting = 0
    for run in range(3):
        drawn_by(a_job(served(rollout), f"run {run}"), rollout, artifacts)
        if waiting >= ENOUGH_TO_REVIEW:
            break
        waiting = len(asked(artifacts, rollout))
    assert waiting == len(asked(artifacts, rollout)) >= ENOUGH_TO_REVIEW
    answered = {trace.span_id for trace in asked(artifacts, rollout)}
    drawn_by(a_job(served(rollout, reviewed=answered), "later"), rollout, artifacts)
    assert len(asked(artifacts, rollout)) > waiting


def test_a_small_budget_draws_fewer_traces_and_none_is_left_for_a_verdict(
    artifacts: VersionStore, rollout: Rollout
) -> None:
    lm = stand_in(max_calls=50)
    with lm.meter.holding_back(30):
        drawn_by(a_job(served(rollout)), rollout, artifacts, lm)
        assert len(draws(artifacts, rollout)[0].drawn) == 10
        assert drawn_by(a_job(served(rollout), "next"), rollout, artifacts, lm) == []
    assert lm.meter.calls_left == 30


def test_spent_tokens_are_noted_and_nothing_is_recorded(artifacts: VersionStore, rollout: Rollout) -> None:
    lm = metered_lm(LMSettings(model="stand-in"), Meter(6000, 500))
    (note,) = drawn_by(a_job(served(rollout)), rollout, artifacts, lm)
    assert "because of the budget" in note
    assert draws(artifacts, rollout) == []


@pytest.mark.parametrize(
    ("field", "value"), [("evidence", "live"), ("modules.routing.evidence", "live"), ("rollout.monitor", "false")]
)
def test_nobody_is_asked_where_people_do_not_decide(
    artifacts: VersionStore, rollout: Rollout, field: str, value: str
) -> None:
    job = replace(a_job(served(rollout)), config=with_field(CONFIG, field, value))
    assert drawn_by(job, rollout, artifacts) == []
    assert draws(artifacts, rollout) == []


def test_a_canary_that_proves_itself_in_production_is_left_alone(artifacts: VersionStore) -> None:
    version = store(artifacts, program(), 1)
    start_canary(artifacts, version, expected=None, actor="t", reason="", fraction=0.1, proving_alpha=0.01)
    proving = active_rollout(artifacts.last_transition())
    assert proving and drawn_by(a_job(served(proving)), proving, artifacts) == []
    assert draws(artifacts, proving) == []


def test_a_version_that_cannot_be_read_is_noted(artifacts: VersionStore, rollout: Rollout) -> None:
    artifacts.withdraw(str(rollout.against), actor="t", reason="erased")
    (note,) = drawn_by(a_job(served(rollout)), rollout, artifacts)
    assert "was withdrawn" in note


def test_a_run_draws_for_the_rollout_before_it_searches_for_another_candidate(
    artifacts: VersionStore, rollout: Rollout
) -> None:
    report = optimize(a_job(served(rollout)), stand_in(), artifacts)
    (draw,) = draws(artifacts, rollout)
    assert len(draw.drawn) == 100
    assert any(note.startswith("both versions of the rollout answered 100 traces") for note in report.notes)
    assert report.tried  # the search went on


def test_a_run_draws_for_a_canary_that_serves_beside_the_baseline(artifacts: VersionStore) -> None:
    bring(artifacts, store(artifacts, program(), 1), RolloutPolicy(canary_fraction=0.2))
    canary = active_rollout(artifacts.last_transition())
    assert canary
    optimize(a_job(served(canary)), stand_in(), artifacts)
    assert asked(artifacts, canary)


def test_what_a_user_says_unasked_leaves_a_disagreement_to_be_reviewed(
    artifacts: VersionStore, rollout: Rollout
) -> None:
    drawn_by(a_job(served(rollout)), rollout, artifacts)
    praised = [replace(each, annotations=(Annotation("HUMAN", "correct", {}, each.time),)) for each in served(rollout)]
    different = asked(artifacts, rollout)
    found = compare_by_reviews(ROUTING, LABELS, different, {each.span_id: each for each in praised})
    assert (found.gains, found.to_review) == ((), len(different))
