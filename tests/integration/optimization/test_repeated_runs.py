"""A run that is repeated, as Dagster and people repeat runs, does not look at its holdout twice.

A model may answer otherwise the second time. Were it asked until its answers are liked, luck would promote.
"""

import hashlib
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dspy
import pytest
from dspy.lm15 import Message, Request, Response, TextPart

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, TrafficProfile, sample_truths, simulate_requests
from autoopt_pipeline.errors import ArtifactStoreUnavailable, InvalidArtifact
from autoopt_pipeline.evaluation.alpha_ledger import alpha_of_charge
from autoopt_pipeline.lm.metering import Meter, MeteredEngine, Role
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import Agent, RoutingConfigUnified, with_field
from tests.support.sample_decisions import as_read

ROUTING = get_module("routing")
CONFIG = RoutingConfigUnified(tenant_id="acme", agents=[Agent(name=name) for name in SAMPLE_AGENTS])
MANUAL = with_field(CONFIG, "mode", "propose")
END = datetime(2026, 1, 2, tzinfo=UTC)
START = END - timedelta(days=1)


class Moody:
    """The stand-in, but in a bad mood a share of requests with demos gets no answer, if not search_agent's."""

    def __init__(self) -> None:
        self.silent_on = 0.0
        self._engine = StandInEngine()

    def complete(self, request: Request) -> Response:
        response = self._engine.complete(request)
        digest = hashlib.sha256((request.messages[-1].text or "").encode()).digest()
        easy = len(request.messages) == 1 or "search_agent" in (response.message.text or "")
        if not easy and digest[0] < 256 * self.silent_on:
            return Response(
                id="moody",
                model=request.model,
                message=Message.assistant([TextPart("")]),
                finish_reason="stop",
                usage=response.usage,
            )
        return response


@dataclass
class World:
    """A tenant's module, its traces, and runs of it. `mood` is how the model answers the holdout."""

    artifacts: VersionStore
    decisions: list[LoggedDecision]
    said: list[str] = field(default_factory=list)

    def run(
        self,
        run_id: str,
        *,
        mood: float = 0.0,
        model: str = "moody",
        config: RoutingConfigUnified = CONFIG,
        attempt: str = "first",
    ) -> Report:
        engine, meter = Moody(), Meter(20_000, 10**9)
        lm = dspy.LM(model, engine=MeteredEngine(engine, model, meter, Role.ANSWERS), cache=False, num_retries=0)
        self.said.clear()

        def say(line: str) -> None:
            self.said.append(line)
            if line.startswith("finalist"):
                engine.silent_on = mood

        job = OptimizationJob(ROUTING, config, self.decisions, START, END, run_id, attempt=attempt, only="coverage")
        return optimize(job, MeteredLM(lm, meter, model, 1, False), self.artifacts, log=say)

    @property
    def looked(self) -> bool:
        return any(line.startswith("finalist") for line in self.said)


@pytest.fixture(scope="module")
def decisions() -> list[LoggedDecision]:
    rng = random.Random(1)
    choices = {"agent": list(SAMPLE_AGENTS), "modality": [label.name for label in get_module("modality").labels or ()]}
    requests = simulate_requests(
        list(sample_truths(600, rng)), choices, TrafficProfile(), start=START, end=END, rng=rng
    )
    return as_read(ROUTING, list(requests))


@pytest.fixture
def world(tmp_path: Path, decisions: list[LoggedDecision]) -> World:
    return World(VersionStore(ObjectStore(str(tmp_path)), "acme", "routing"), decisions)


def test_a_rejection_stands_when_the_run_is_repeated_and_the_model_answers_better(world: World) -> None:
    first = world.run("first", mood=1.0)
    assert first.verdict is Verdict.REJECTED
    again = world.run("again")
    assert (again.verdict, again.reason, world.looked) == (Verdict.REJECTED, first.reason, False)
    assert again.gate and first.gate
    assert again.gate.comparison == first.gate.comparison
    assert "run first has judged this candidate on these traces, and its verdict stands" in again.notes
    assert [charge.alpha for charge in world.artifacts.ledger()] == [alpha_of_charge(1)]
    assert world.artifacts.active() is None


def test_in_a_run_of_its_own_the_candidate_is_looked_at_anew_and_charged_anew(world: World) -> None:
    world.run("first", mood=1.0)
    another = world.run("another", attempt="another")
    assert (another.verdict, world.looked) == (Verdict.PROMOTED, True)
    assert [charge.alpha for charge in world.artifacts.ledger()] == [alpha_of_charge(1), alpha_of_charge(2)]


def test_another_model_is_looked_at_anew_and_charged_anew_also_in_a_repeated_run(world: World) -> None:
    world.run("first", mood=1.0)
    again = world.run("again", model="better")
    assert (again.verdict, world.looked) == (Verdict.PROMOTED, True)
    assert [charge.alpha for charge in world.artifacts.ledger()] == [alpha_of_charge(1), alpha_of_charge(2)]


def test_a_run_that_died_before_its_verdict_looks_again_at_the_same_charge(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ArtifactStoreUnavailable("the disk is full", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(VersionStore, "save", full)
        with pytest.raises(ArtifactStoreUnavailable):
            world.run("first")
    again = world.run("again")
    assert (again.verdict, world.looked) == (Verdict.PROMOTED, True)
    assert len(world.artifacts.ledger()) == 1


def test_a_run_that_died_between_its_verdict_and_the_promotion_promotes_when_it_is_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ArtifactStoreUnavailable("the store is away", "wait")

    with monkeypatch.context() as patch:
        patch.setattr(VersionStore, "transition", away)
        with pytest.raises(ArtifactStoreUnavailable):
            world.run("first")
    again = world.run("again", mood=1.0)
    assert (again.verdict, world.looked) == (Verdict.PROMOTED, False)
    active = world.artifacts.active()
    assert active and active.version == again.version


def test_what_awaits_approval_still_does(world: World) -> None:
    first = world.run("first", config=MANUAL)
    again = world.run("again", config=MANUAL, mood=1.0)
    assert again.verdict is Verdict.AWAITING_APPROVAL
    assert (again.reason, again.version, world.looked) == (first.reason, first.version, False)


def test_a_trial_that_ended_is_not_begun_again_by_repeating_the_run_that_began_it(world: World) -> None:
    first = world.run("first", mood=0.68)
    assert first.verdict is Verdict.INCONCLUSIVE, first.reason
    (begun,) = world.artifacts.sequential_test()
    world.artifacts.add_sequential_test_step(
        begun.model_copy(update={"sequence": 2, "verdict": "rejected", "run_id": "n2"})
    )
    again = world.run("again")
    assert (again.verdict, world.looked) == (Verdict.REJECTED, False)
    assert "has already ended" in again.reason
    assert len(world.artifacts.sequential_test_steps()) == 2


def test_a_damaged_manifest_is_told_and_nothing_is_asked_again(world: World) -> None:
    first = world.run("first", mood=1.0)
    (path,) = Path(world.artifacts._files._root).glob("acme/routing/versions/*/manifest.json")
    path.write_text(path.read_text().replace('"fixed"', '"mended"'))
    with pytest.raises(InvalidArtifact, match=f"the manifest of {first.version} is damaged"):
        world.run("again")
    assert not world.looked
