"""A run asks the program that serves again what it was asked before, over HTTP, and never takes noise for a change."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import dspy
import pytest

from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.evaluation.gate import GateDecision, decide
from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.optimization import comparison
from autoopt_pipeline.optimization.model_replay import LEAST_ASKED, MOST_CHARS, MOST_KEPT, Replayer, replay_set
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import StoredAnswer, Verdict
from autoopt_pipeline.registry.replays import ModelReplay, reported_replays
from autoopt_pipeline.registry.serialization import deserialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import LMSettings, QualityPolicy
from tests.support.labeled_requests import LABELS, examples
from tests.support.llm_server import Answered, LLMServer, Sent
from tests.support.optimizing import CONFIG, ROUTING, decisions, job, stand_in

EXAMPLES = examples(ROUTING, 100)
QUERIES = [example.query for example in EXAMPLES]
AGENTS = [label.name for label in LABELS]


def query_in(sent: Sent) -> str:
    return re.findall(r"\[\[ ## query ## \]\]\n(.*)", sent.question)[-1]


def model(changed: float = 0.0, noise: float = 0.0) -> Callable[[Sent], Answered]:
    rng = random.Random(1)

    def answer(sent: Sent) -> Answered:
        query = query_in(sent)
        differs = (unit_interval(f"changed {query}") < changed) ^ (rng.random() < noise)
        return Answered(
            f"[[ ## reasoning ## ]]\nr\n\n[[ ## agent ## ]]\n{AGENTS[(unit_interval(query) < 0.5) ^ differs]}\n\n"
            "[[ ## confidence ## ]]\n0.9\n\n[[ ## completed ## ]]"
        )

    return answer


def replayer(  # noqa: PLR0913 - what differs between the tests
    server: LLMServer,
    artifacts: VersionStore,
    *,
    calls: int = 30,
    budget: int = 1000,
    version: str | None = None,
    program: dspy.Module | None = None,
    name: str = "openai/test",
    labels: list[Label] = LABELS,
    excluded: tuple[str, ...] = (),
) -> Replayer:
    agents = [{"name": label.name, "description": label.description} for label in labels]
    fields = {**CONFIG.model_dump(exclude_unset=True), "agents": agents, "excluded_traces": list(excluded)}
    config = type(CONFIG).model_validate(fields).model_copy(update={"quality": QualityPolicy(replay_calls=calls)})
    meter = Meter(budget, 10**9)
    ask: Callable[[], MeteredLM] = partial(
        metered_lm, LMSettings(model=name, api_base=server.url, concurrency=1), meter
    )
    return Replayer(
        job([], config), version, program or ROUTING.build_program(labels), ask, artifacts, PhaseTracker(meter)
    )


@pytest.fixture
def files(artifacts: VersionStore) -> ObjectStore:
    return artifacts._files


def result(files: ObjectStore) -> ModelReplay:
    (found,) = reported_replays(files)
    return found


def test_the_baseline_is_asked_once_to_compare_with_and_then_again_and_again(
    server: LLMServer, artifacts: VersionStore, files: ObjectStore
) -> None:
    server.answer = model()
    (said,) = replayer(server, artifacts).replay(EXAMPLES)
    assert said == "openai/test was asked 24 held-out requests, which later runs ask again"
    first = [query_in(sent) for sent in server.sent]
    assert len(set(first)) == 24
    assert set(first) < set(QUERIES)
    assert reported_replays(files) == []
    server.sent.clear()
    (said,) = replayer(server, artifacts).replay(EXAMPLES)
    assert said.startswith("openai/test answers all 24 held-out requests as on")
    assert [query_in(sent) for sent in server.sent] == first
    kept = artifacts.replay_set(None)
    assert kept
    assert kept.same_at == result(files).at > kept.answered_at


def test_a_changed_model_is_found_within_the_calls_and_becomes_what_is_compared_with(
    server: LLMServer, artifacts: VersionStore, files: ObjectStore
) -> None:
    server.answer = model()
    replayer(server, artifacts).replay(EXAMPLES)
    server.sent.clear()
    server.answer = model(changed=0.4)
    replayer(server, artifacts, name="openai/new").replay(EXAMPLES)
    found = result(files)
    assert server.calls == 30
    assert (found.asked, found.repeated, found.returned) == (24, 6, 0)
    assert found.changed >= 6
    assert found.p < 0.05
    assert str(found).endswith(", when it was openai/test")
    again, doubted = server.sent[:24], server.sent[24:]
    assert [query_in(sent) for sent in doubted] == [
        query_in(sent) for sent in again if unit_interval(f"changed {query_in(sent)}") < 0.4
    ][:6]
    replayer(server, artifacts, name="openai/new").replay(EXAMPLES)
    assert (result(files).changed, result(files).lm_before) == (0, "openai/new")


def test_a_model_that_varies_is_not_taken_for_another_one(
    server: LLMServer, artifacts: VersionStore, files: ObjectStore
) -> None:
    server.answer = model(noise=0.15)
    replayer(server, artifacts, calls=60).replay(EXAMPLES)
    before = artifacts.replay_set(None)
    replayer(server, artifacts, calls=60).replay(EXAMPLES)
    found = result(files)
    assert found.asked == MOST_KEPT
    assert found.returned
    assert found.p > 0.1
    assert artifacts.replay_set(None) == before  # it is neither proven the same nor another


def test_another_baseline_is_asked_anew(server: LLMServer, artifacts: VersionStore, files: ObjectStore) -> None:
    server.answer = model()
    replayer(server, artifacts).replay(EXAMPLES)
    more = [*LABELS, Label("new_agent", "something new")]
    assert "was asked 24" in replayer(server, artifacts, labels=more).replay(EXAMPLES)[0]
    assert reported_replays(files) == []


@pytest.mark.parametrize(("calls", "budget"), [(12, 1000), (30, 11)])
def test_too_few_calls_ask_nothing_and_say_so(
    server: LLMServer, artifacts: VersionStore, calls: int, budget: int
) -> None:
    (said,) = replayer(server, artifacts, calls=calls, budget=budget).replay(EXAMPLES)
    assert f"quality.replay_calls={calls} or the {budget} calls of the budget" in said
    assert server.calls == 0
    assert replayer(server, artifacts, calls=0).replay(EXAMPLES) == []


def test_excluded_traces_are_not_asked_and_after_erasure_others_are(
    server: LLMServer, artifacts: VersionStore, files: ObjectStore
) -> None:
    server.answer = model()
    replayer(server, artifacts).replay(EXAMPLES)
    kept = artifacts.replay_set(None)
    assert kept
    excluded, *_ = (example.trace_id for example in kept.examples)
    replayer(server, artifacts, excluded=(excluded,)).replay(EXAMPLES)
    assert result(files).asked == 23
    left = {example.span_id for example in kept.examples[: LEAST_ASKED - 1]}
    artifacts.erase_replayed(lambda example: example.span_id not in left)
    assert "was asked 24" in replayer(server, artifacts).replay(EXAMPLES)[0]


def test_a_damaged_set_is_named_and_replaced(server: LLMServer, artifacts: VersionStore, files: ObjectStore) -> None:
    server.answer = model()
    files.replace("acme/routing/replays/baseline.json", b'{"version": 1}')
    problem, said = replayer(server, artifacts).replay(EXAMPLES)
    assert problem.startswith("what the model was asked before is replaced, because it cannot be read: acme/routing")
    assert "was asked 24" in said
    assert artifacts.replay_set(None)


def test_what_is_kept_is_bounded() -> None:
    long = replace(EXAMPLES[0], inputs={"query": "x" * (MOST_CHARS + 1)})
    answer = StoredAnswer(values={"agent": "a"}, confidence=0.9)
    given = [(example, answer) for example in (long, *EXAMPLES[1:])]
    kept = replay_set("v1", given, "m")  # ty: ignore[invalid-argument-type]
    assert len(kept.examples) == MOST_KEPT
    assert max(len(example.inputs["query"]) for example in kept.examples) <= MOST_CHARS


def test_a_promoted_version_has_its_answers_from_the_holdout_and_these_cost_no_call(
    server: LLMServer, artifacts: VersionStore, files: ObjectStore
) -> None:
    asks_a_model = CONFIG.model_copy(update={"local_router": False})
    report = optimize(job(decisions(290, TrafficProfile(reviewed=1.0)), asks_a_model), stand_in(), artifacts)
    assert report.verdict is Verdict.PROMOTED
    assert report.version
    kept = artifacts.replay_set(report.version)
    assert kept
    answered = {row.example.span_id: row.candidate.values for row in report.compared}
    assert {each.span_id: each.answer.values for each in kept.examples}.items() <= answered.items()
    assert len(kept.examples) == min(MOST_KEPT, len(answered))
    program = deserialize(ROUTING, [Label(agent.name) for agent in CONFIG.agents], artifacts.load(report.version))
    replayer(server, artifacts, version=report.version, program=program).replay([])
    found = result(files)
    assert (found.version, found.lm_before, found.asked) == (report.version, "stand-in", 24)
    assert [query_in(sent) for sent in server.sent[:24]] == [each.inputs["query"] for each in kept.examples[:24]]
    assert found.changed == 0  # the server answers with the stand-in
    artifacts.withdraw(report.version, actor="t", reason="r")
    assert artifacts.replay_set(report.version) is None


def test_a_local_router_alone_is_replayed_without_a_call(
    server: LLMServer, artifacts: VersionStore, files: ObjectStore
) -> None:
    report = optimize(job(decisions(290, TrafficProfile(reviewed=1.0))), stand_in(), artifacts)
    assert report.version
    program = deserialize(ROUTING, [Label(agent.name) for agent in CONFIG.agents], artifacts.load(report.version))
    replayer(server, artifacts, version=report.version, program=program).replay([])
    assert (result(files).asked, result(files).changed, server.calls) == (24, 0, 0)


def test_a_rejected_candidate_keeps_no_text(artifacts: VersionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(*args: Any, **kwargs: Any) -> GateDecision:
        return replace(decide(*args, **kwargs), verdict=Verdict.REJECTED)

    monkeypatch.setattr(comparison, "decide", reject)
    report = optimize(job(decisions(290, TrafficProfile(reviewed=1.0))), stand_in(), artifacts)
    (manifest,) = artifacts.versions()
    assert (manifest.version, manifest.verdict) == (report.version, Verdict.REJECTED)
    assert artifacts.replay_set(manifest.version) is None
