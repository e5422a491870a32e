"""Two models behind a real HTTP endpoint: the better one wins with prompts of its own, and its version names it."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest

from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.errors import InvalidArtifact, LMUnavailable
from autoopt_pipeline.evaluation.runner import answer_all
from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.lm.metering import Meter, Role
from autoopt_pipeline.lm.models import answering_lms, metered_lm
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.named_model import models_asked, naming
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.optimization.pipeline import estimate, optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.records import Program, Verdict
from autoopt_pipeline.registry.serialization import compose, deserialize, serialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.serving import Serving, language_model
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of
from tests.support.llm_server import Answered, LLMServer, Sent, llm_server
from tests.support.optimizing import CONFIG, ROUTING, decisions, job

TRAFFIC = decisions(300, TrafficProfile(reviewed=1.0))
LABELS = labels_of(ROUTING, CONFIG)
RIGHT = {normalize_query(each.query): each.label for each in ROUTING.build_examples(LABELS, TRAFFIC, str).examples}
OWN, OTHER = "openai/own", "openai/other"
KEY = "sk-of-the-candidate-model"


def query_in(sent: Sent) -> str:
    return normalize_query(re.findall(r"\[\[ ## query ## \]\]\n(.*)", sent.question)[-1])


def half_right(query: str) -> str:
    return RIGHT[query] if unit_interval(query) < 0.5 else LABELS[0].name


def answered(agent: str) -> Answered:
    return Answered(
        f"[[ ## reasoning ## ]]\nknown\n\n[[ ## agent ## ]]\n{agent}\n\n"
        "[[ ## confidence ## ]]\n0.9\n\n[[ ## completed ## ]]"
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLMServer]:
    """One model answers half of the requests right, the other one all where it is shown demos."""

    def answer(sent: Sent) -> Answered | None:
        if "[[ ## agent ## ]]" not in sent.body["messages"][0]["content"]:
            return None  # a search for instructions
        knows = sent.body["model"] == "other" and len(sent.body["messages"]) > 2
        agent = (RIGHT.__getitem__ if knows else half_right)(query_in(sent))
        return answered(agent)

    monkeypatch.setenv("CANDIDATE_API_KEY", KEY)
    with llm_server() as running:
        running.answer = answer
        yield running


def configured(server: LLMServer, **changes: Any) -> RoutingConfigUnified:
    """A tenant with two models. The second one costs a tenth."""
    own = {"model": OWN, "api_base": server.url, "answer_format": "chat", "price": {"input": 1, "output": 10}}
    other = {**own, "model": OTHER, "api_key_env": "CANDIDATE_API_KEY", "price": {"input": 0.1, "output": 1}}
    fields = {
        **CONFIG.model_dump(exclude_unset=True),
        "lm": own,
        "candidate_lms": [other],
        "local_router": False,
        "dspy_max_bootstrapped_demos": 0,
        "budget": {"max_lm_calls": 2000},
        "rollout": {"monitor": False},  # no request is left to the baseline
        **changes,
    }
    return RoutingConfigUnified.model_validate(fields)


def optimized(config: RoutingConfigUnified, artifacts: VersionStore, *, run_id: str = "run") -> Report:
    lm = answering_lms(config, Settings(), Meter(config.budget.max_lm_calls, 10**9))
    return optimize(job(TRAFFIC, config, run_id), lm, artifacts)


def asked(server: LLMServer) -> Counter[str]:
    return Counter(sent.body["model"] for sent in server.sent)


def test_the_better_model_wins_and_its_version_names_it(
    server: LLMServer, artifacts: VersionStore, tmp_path: Path
) -> None:
    report = optimized(configured(server), artifacts)
    assert report.verdict is Verdict.PROMOTED
    assert report.optimizer == f"coverage-16 ({OTHER})"
    assert report.program_lms == {"incumbent": OWN, "candidate": OTHER}
    manifest = artifacts.manifest(report.version or "")
    assert manifest
    assert (manifest.lm, manifest.named_lms, manifest.stand_in) == (OTHER, [OTHER], False)
    before, after = report.costs["incumbent"].dollars, report.costs["candidate"].dollars
    assert before
    assert after == pytest.approx(before / 10)
    stored = artifacts.load(manifest.version)
    assert (stored.format, stored.lms) == (2, {"decide": OTHER})
    assert stored.encode() == Program.model_validate_json(stored.encode()).encode()
    tried = {each.optimizer for each in report.tried}
    assert {f"incumbent ({OTHER})", f"coverage-50 ({OTHER})", "coverage-16"} <= tried
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]


def test_a_cheaper_model_that_answers_alike_wins_for_what_it_saves(server: LLMServer, artifacts: VersionStore) -> None:
    server.answer = lambda sent: (
        answered(half_right(query_in(sent))) if "[[ ## agent ## ]]" in sent.body["messages"][0]["content"] else None
    )
    report = optimized(configured(server, objective={"max_loss": 0.05}), artifacts)
    assert (report.verdict, report.program_lms["candidate"]) == (Verdict.PROMOTED, OTHER), report.reason
    assert "90 % less" in report.reason


def test_a_version_that_names_a_model_is_the_incumbent_with_that_model(
    server: LLMServer, artifacts: VersionStore
) -> None:
    config = configured(server, budget={"max_lm_calls": 1000})
    optimized(config, artifacts)
    server.sent.clear()
    again = optimized(config, artifacts, run_id="second")
    assert again.verdict is Verdict.REJECTED  # nothing is better than always right, so only cheaper programs raced
    assert again.incumbent_dev_score == 1.0
    assert set(asked(server)) == {"other"}


@pytest.mark.parametrize("fault", ["the endpoint is down", "the key is refused", "the key is not set"])
def test_a_candidate_model_that_fails_is_left_out(
    fault: str, server: LLMServer, artifacts: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = configured(server).candidate_lms[0]
    if fault == "the key is not set":
        monkeypatch.delenv("CANDIDATE_API_KEY")
    elif fault == "the key is refused":
        server.always = 401
    else:
        other = other.model_copy(update={"api_base": "http://127.0.0.1:9/v1"})
        monkeypatch.setattr("autoopt_pipeline.lm.endpoint._sleep", lambda seconds: None)
    report = optimized(configured(server, lm={"model": "stand-in"}, candidate_lms=[other.model_dump()]), artifacts)
    assert report.verdict is Verdict.PROMOTED
    assert report.program_lms["candidate"] == "stand-in"
    (note,) = [note for note in report.notes if "were left out" in note]
    assert f"the programs that ask {OTHER} were left out: language model {OTHER}" in note
    assert KEY not in note


def test_a_candidate_model_that_fails_later_loses_its_lead(server: LLMServer, artifacts: VersionStore) -> None:
    answer, asked_before = server.answer, []

    def failing(sent: Sent) -> Answered | None:
        asked_before.append(sent)
        return Answered(status=401, error={"error": {"message": "no"}}) if len(asked_before) > 60 else answer(sent)

    server.answer = failing
    report = optimized(configured(server, lm={"model": "stand-in"}), artifacts)
    assert report.program_lms["candidate"] == "stand-in"


def test_the_tenants_own_model_ends_the_run_if_it_fails(
    server: LLMServer, artifacts: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoopt_pipeline.lm.endpoint._sleep", lambda seconds: None)
    server.answer = lambda sent: (
        Answered(status=503, error={"error": {"message": "down"}}) if sent.body["model"] == "own" else None
    )
    with pytest.raises(LMUnavailable, match=OWN):
        optimized(configured(server), artifacts)


def test_where_the_model_of_the_active_version_is_retired_its_prompts_race_with_others(
    server: LLMServer, artifacts: VersionStore
) -> None:
    optimized(configured(server), artifacts)
    report = optimized(configured(server, candidate_lms=[]), artifacts, run_id="second")
    assert f"the program asks {OTHER}, which is not given here" in " ".join(report.notes)
    assert "retired program" in {each.optimizer for each in report.tried}


def test_a_candidate_model_that_labels_dev_does_not_race_because_it_agrees_with_itself(
    server: LLMServer, artifacts: VersionStore
) -> None:
    config = configured(server, lm={"model": "stand-in"})
    lm = answering_lms(config, Settings(), Meter(4000, 10**9))
    teacher = metered_lm(config.candidate_lms[0], lm.meter, Role.TEACHER)
    unreviewed = [replace(decision, annotations=()) for decision in TRAFFIC]
    report = optimize(job(unreviewed, config), lm, artifacts, teacher=teacher)
    assert any(note.startswith(f"{OTHER} labelled") for note in report.notes)
    assert report.tried
    assert not [each.optimizer for each in report.tried if OTHER in each.optimizer]


def test_the_slowest_model_limits_the_concurrent_calls_of_a_program(server: LLMServer) -> None:
    config = configured(server)
    slow = config.candidate_lms[0].model_copy(update={"concurrency": 2})
    lm = answering_lms(config.model_copy(update={"candidate_lms": [slow]}), Settings(), Meter(1, 1))
    program = ROUTING.build_program(LABELS)
    assert [lm.threads_for(each) for each in (program, naming(program, OTHER))] == [8, 2]


def test_the_estimate_counts_candidate_models(server: LLMServer, artifacts: VersionStore) -> None:
    config = configured(server)
    lm = answering_lms(config, Settings(), Meter(2000, 10**9))
    expected, _ = estimate(job(TRAFFIC, config), lm, artifacts)
    alone, _ = estimate(job(TRAFFIC, config), replace(lm, others={}), artifacts)
    assert expected.lm_calls > alone.lm_calls + 100
    assert server.calls == 0


def test_an_application_serves_it_with_that_model_and_refuses_it_without(
    server: LLMServer, artifacts: VersionStore, tmp_path: Path
) -> None:
    report = optimized(configured(server), artifacts)
    root = str(tmp_path)
    agents = [(label.name, label.description) for label in LABELS]
    query = ROUTING.build_examples(LABELS, TRAFFIC, str).examples[0].query

    own, other = (language_model(name, api_base=server.url) for name in (OWN, OTHER))
    server.sent.clear()
    serving = Serving(root, lm=own, lms={OTHER: other})
    decision = serving.decide("acme", "routing", agents=agents, query=query)
    assert (decision.version, asked(server)) == (report.version, {"other": 1})

    with dspy.context(lm=own):  # also in the application's own code
        serving.program("acme", "routing", agents=agents).program(query=query)
    assert asked(server) == {"other": 2}

    server.sent.clear()
    serving = Serving(root, lm=own)
    decision = serving.decide("acme", "routing", agents=agents, query=query)
    assert (decision.version, asked(server)) == (None, {"own": 1})
    (problem,) = serving.problems()
    assert f"acme/routing: the program asks {OTHER}, which is not given here" in problem.what
    assert "Serving(lms={...})" in problem.remedy

    server.sent.clear()  # the name is enough, whoever gives the model
    assert Serving(root, lm=other).decide("acme", "routing", agents=agents, query=query).version == report.version


def test_a_composed_module_asks_the_models_of_its_parts(server: LLMServer) -> None:
    unified, labels = get_module("unified"), labels_of(get_module("unified"), CONFIG)
    part = serialize(ROUTING, "acme", LABELS, naming(ROUTING.build_program(LABELS), OTHER))
    program = compose(unified, labels, {"routing": part}, models=[OTHER])
    assert models_asked(program, OWN) == [OTHER, OWN]
    stored = serialize(unified, "acme", labels, program)
    assert stored.lms == {"routing.decide": OTHER}
    modality, agent = "text", LABELS[0].name
    sections = {"reasoning": "known", "modality": modality, "agent": agent, "confidence": 0.9, "completed": ""}
    text = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in sections.items())
    server.answer = lambda sent: Answered(text)
    lm = answering_lms(configured(server), Settings(), Meter(10, 10**9))
    example = ROUTING.build_examples(LABELS, TRAFFIC).examples[0]
    inputs = {name: text for name, text in example.inputs.items() if name != "modality"}
    answer_all(unified, deserialize(unified, labels, stored, lm.models), [replace(example, inputs=inputs)], lm)
    assert [sent.body["model"] for sent in server.sent] == ["own", "other", "own"]  # modality, routing, workflow
    with pytest.raises(InvalidArtifact, match="is not given here"):
        compose(unified, labels, {"routing": part}, models=[OWN])
