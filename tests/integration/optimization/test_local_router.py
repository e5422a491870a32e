"""Local routers in the race, in the registry, in service, and when a trace is erased."""

import shutil
import statistics
from pathlib import Path

import dspy
import pytest

from autoopt_pipeline.erasure.programs import erase_from_programs, without_target
from autoopt_pipeline.erasure.target import ErasureTarget
from autoopt_pipeline.errors import InvalidConfig, InvalidSettings
from autoopt_pipeline.evaluation.runner import answer_all
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.cascade import Cascade, cascades_in
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.optimization.optimizers import routers
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.module_versions import routers_of
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.serialization import deserialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.serving import Serving
from autoopt_pipeline.tenants.config import LMSettings, RoutingConfigUnified, with_field
from autoopt_pipeline.tenants.labels import labels_of
from tests.support.labeled_requests import context_of
from tests.support.optimizing import CONFIG, END, ROUTING, START, decisions, stand_in
from tests.support.tiny_encoder import tiny_encoder

TRAFFIC = decisions(450)
LABELS = labels_of(ROUTING, CONFIG)


def store(folder: Path) -> VersionStore:
    return VersionStore(ObjectStore(str(folder)), "acme", "routing")


def learnt(
    artifacts: VersionStore,
    config: RoutingConfigUnified = CONFIG,
    only: str | None = "local-router",
    encoder: Path | None = None,
) -> Report:
    job = OptimizationJob(ROUTING, config, TRAFFIC, START, END, "run", only=only, encoder=encoder)
    return optimize(job, stand_in(), artifacts)


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VersionStore, Report]:
    folder = tmp_path_factory.mktemp("artifacts")
    artifacts = store(folder)
    # Without a rollout, in which the baseline would answer some requests.
    return folder, artifacts, learnt(artifacts, with_field(CONFIG, "rollout.monitor", "false"))


def test_a_router_is_promoted_by_the_same_gate(promoted: tuple[Path, VersionStore, Report]) -> None:
    _, artifacts, report = promoted
    assert report.verdict is Verdict.PROMOTED
    assert {tried.optimizer for tried in report.tried} <= {
        "local-router",
        "local-router + model",
        "careful local-router + model",
    }
    assert [change.predictor for change in report.changes if change.demos is None] == ["local router of routing"]
    assert artifacts.load(str(report.version)).router_sources.keys() == {"routing"}


def test_it_is_made_and_asked_without_a_model(promoted: tuple[Path, VersionStore, Report]) -> None:
    *_, report = promoted
    (alone,) = [tried for tried in report.tried if tried.optimizer == "local-router"]
    assert (alone.making_calls, alone.judging_calls) == (0, 0)


def test_the_same_traces_give_the_same_router(promoted: tuple[Path, VersionStore, Report], tmp_path: Path) -> None:
    _, artifacts, first = promoted
    again = store(tmp_path)
    second = learnt(again)
    assert again.load(str(second.version)).encode() == artifacts.load(str(first.version)).encode()


def test_it_learns_from_training_traces_only(promoted: tuple[Path, VersionStore, Report]) -> None:
    _, artifacts, report = promoted
    (cascade,) = cascades_in(deserialize(ROUTING, LABELS, artifacts.load(str(report.version))))
    held_out = {row.example.trace_id for row in report.compared}
    assert held_out
    assert held_out.isdisjoint(cascade.sources)
    assert len(cascade.sources) == report.examples["train"]


def test_an_application_is_answered_without_asking_its_model(promoted: tuple[Path, VersionStore, Report]) -> None:
    folder, artifacts, report = promoted
    program = deserialize(ROUTING, LABELS, artifacts.load(str(report.version)))
    (cascade,) = cascades_in(program)
    asked = [example.query for example in ROUTING.build_examples(LABELS, TRAFFIC[:100]).examples]
    names = {label.name for label in LABELS}
    sure = [query for query in asked if cascade.router.choose({"query": query}, names)[1] >= cascade.threshold]
    serving = Serving(str(folder), refresh_seconds=600)
    try:
        answers = [
            serving.decide("acme", "routing", agents=[agent.name for agent in CONFIG.agents], query=query)
            for query in sure
        ]
    finally:
        serving.close()
    assert len(answers) > 10
    assert all(answer.values["agent"] in names for answer in answers)
    assert {answer.version for answer in answers} == {report.version}


def test_what_the_router_is_not_sure_about_goes_to_the_model() -> None:
    context, lm = context_of(ROUTING, train=100, dev=100), stand_in()
    alone = next(iter(routers(context, context.start, [0.0] * 100))).compile()
    by_router = answer_all(ROUTING, alone, context.dev, lm)
    # The model is right where the router is less sure than usual, so the division between them is clear.
    usual = statistics.median(answer.confidence or 0.0 for answer in by_router)
    scores = [float((answer.confidence or 0.0) < usual) for answer in by_router]
    _, divided, *_ = (optimizer.compile() for optimizer in routers(context, context.start, scores))
    assert isinstance(divided, Cascade)
    before = lm.meter.calls
    answers = answer_all(ROUTING, divided, context.dev, lm)
    assert before == 0
    assert 0 < lm.meter.calls < 100
    assert [ours == theirs for ours, theirs in zip(answers, by_router, strict=True)].count(True) >= 100 - lm.meter.calls


def test_the_next_search_starts_from_the_routers_model(promoted: tuple[Path, VersionStore, Report]) -> None:
    folder, *_ = promoted
    lm = metered_lm(LMSettings(model="stand-in"), Meter(6000, 10**9))
    job = OptimizationJob(ROUTING, CONFIG, TRAFFIC, START, END, "another", only="start")
    report = optimize(job, lm, store(folder))
    assert "incumbent's model" in {tried.optimizer for tried in report.tried}


def test_a_tenant_can_do_without(tmp_path: Path) -> None:
    without = with_field(CONFIG, "local_router", "false")
    report = learnt(store(tmp_path), without, only=None)
    assert not any("local-router" in tried.optimizer for tried in report.tried)
    with pytest.raises(InvalidConfig, match="local-router cannot be tried"):
        learnt(store(tmp_path), without)


def test_a_router_with_unknown_sources_does_not_outlast_an_erasure(
    promoted: tuple[Path, VersionStore, Report],
) -> None:
    _, artifacts, report = promoted
    unknown = artifacts.load(str(report.version)).model_copy(update={"router_sources": {}})
    assert without_target(unknown, ErasureTarget(frozenset(), frozenset())).routers == {}


def test_an_erased_trace_takes_the_router_with_it(tmp_path: Path) -> None:
    artifacts = store(tmp_path)
    before = learnt(artifacts).version
    (trace_id, *_) = artifacts.load(str(before)).router_sources["routing"]
    erased = erase_from_programs(
        artifacts, ErasureTarget(frozenset(), frozenset(), True, frozenset({trace_id})), actor="marta"
    )
    assert erased.withdrawn == (before,)
    now = artifacts.load(str(erased.now))
    assert now.routers == {}
    assert now.router_sources == {}
    assert not cascades_in(deserialize(ROUTING, LABELS, now))


def test_a_version_says_what_its_router_does(promoted: tuple[Path, VersionStore, Report]) -> None:
    _, artifacts, report = promoted
    (change,) = [change for change in report.changes if change.demos is None]
    shown = routers_of(artifacts.load(str(report.version)))
    assert shown == {"routing": change.added[0]}
    assert shown["routing"].endswith(f"4 labels, learnt from {report.examples['train']} traces")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), [["video", "videos"], ["report", "summary"]])


@pytest.fixture(scope="module")
def with_encoder(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> tuple[Path, VersionStore, Report]:
    folder = tmp_path_factory.mktemp("artifacts")
    artifacts = store(folder)
    return folder, artifacts, learnt(artifacts, with_field(CONFIG, "rollout.monitor", "false"), encoder=encoder)


def answered(folder: Path, encoder: Path | None) -> tuple[str | None, list[str]]:
    """The version that answers an application with this encoder, and its problems."""
    serving = Serving(str(folder), refresh_seconds=600, encoder=encoder)
    try:
        with dspy.context(lm=stand_in().lm):
            agents = [agent.name for agent in CONFIG.agents]
            decision = serving.decide("acme", "routing", agents=agents, query="show videos of the launch")
        return decision.version, [f"{problem.what} -> {problem.remedy}" for problem in serving.problems()]
    finally:
        serving.close()


def test_a_router_with_an_encoder_is_promoted_and_says_so(with_encoder: tuple[Path, VersionStore, Report]) -> None:
    _, artifacts, report = with_encoder
    assert report.verdict is Verdict.PROMOTED
    stored = artifacts.load(str(report.version))
    needed = stored.routers["routing"].encoder
    assert needed
    (change,) = [change for change in report.changes if change.demos is None]
    assert routers_of(stored) == {"routing": change.added[0]}
    assert change.added[0].endswith(f"with the sentence encoder {needed.sha256[:12]}")


def test_only_an_application_with_the_encoder_is_answered_by_its_router(
    with_encoder: tuple[Path, VersionStore, Report], encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, report = with_encoder
    assert answered(folder, encoder) == (report.version, [])
    version, (problem,) = answered(folder, None)
    assert version is None
    assert "needs the sentence encoder" in problem
    assert "set AUTOOPT_ENCODER" in problem
    version, (problem,) = answered(folder, tiny_encoder(tmp_path, seed=2))
    assert version is None
    assert f"{tmp_path} holds" in problem
    monkeypatch.setenv("AUTOOPT_ENCODER", str(encoder))
    assert answered(folder, None) == (report.version, [])


def test_a_run_without_the_encoder_of_the_active_version_compares_with_the_baseline(
    with_encoder: tuple[Path, VersionStore, Report], tmp_path: Path
) -> None:
    folder, *_ = with_encoder
    copied = shutil.copytree(folder, tmp_path / "artifacts")
    report = learnt(store(copied), only="start")
    assert any("the active version cannot serve" in note and "sentence encoder" in note for note in report.notes)


def test_a_run_whose_encoder_cannot_be_loaded_fails_before_it_asks_a_model(tmp_path: Path) -> None:
    job = OptimizationJob(ROUTING, CONFIG, TRAFFIC, START, END, "run", encoder=tmp_path / "nothing")
    lm = stand_in()
    with pytest.raises(InvalidSettings, match=r"sentence encoder .*nothing"):
        optimize(job, lm, store(tmp_path))
    assert lm.meter.calls == 0
    # A module that has no router does not need it.
    config = with_field(CONFIG, "local_router", "false")
    assert learnt(store(tmp_path), config, "start", tmp_path / "nothing").verdict is Verdict.REJECTED
