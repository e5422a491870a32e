"""A backtest, beside the same traces played live: a real Phoenix, the real planner and the real asset."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.devtools.sample_reviewer import REVIEWER
from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, right_answers, sample_config, send_sample_traffic
from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.errors import LMNotConfigured
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.modules.spec import query_of
from autoopt_pipeline.names import WINDOW_END_TAG
from autoopt_pipeline.optimization.backtest import Allowance, open_scenarios, play_all
from autoopt_pipeline.orchestration.planner import plan_tenants
from autoopt_pipeline.registry.backtests import PlayedNights
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.reviews.answers import CANNOT_TELL, write_review
from autoopt_pipeline.reviews.queue import open_queue, questions
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.tenants.config import LMSettings, RolloutPolicy, RoutingConfigUnified
from autoopt_pipeline.tenants.store import newest_version, write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from tests.support.llm_server import LLMServer
from tests.support.materializing import materialize, metadata_of
from tests.support.past_traces import NIGHTS, SHORT_PROMPTS, made_scenario, reviewed_stream

SAMPLE = SAMPLE_TENANTS[0]
UNREVIEWED = TrafficProfile(reviewed=0.0, complains=0.0)


@dataclass(frozen=True)
class Lived:
    """A night as it was lived: the decision, and the outcome of the run if there was one."""

    at: datetime
    reason: str
    detail: str
    outcome: Mapping[str, object]


class Life:
    """A tenant whose routing is optimized live. Its nights are as short as they can be."""

    def __init__(self, connections: Connections, instance: dg.DagsterInstance, tenant: str) -> None:
        self.connections, self.instance, self.tenant = connections, instance, tenant
        self.since = datetime.now(UTC)
        self.nights: list[Lived] = []
        self.right: dict[str, dict[str, str]] = {}

    @property
    def artifacts(self) -> VersionStore:
        return self.connections.artifacts(self.tenant, "routing")

    def traffic(self, traces: int, habits: TrafficProfile) -> None:
        sample, seed = replace(SAMPLE, tenant_id=self.tenant, habits=habits), len(self.nights)
        end = datetime.now(UTC)
        send_sample_traffic(self.connections.phoenix, sample, traces, start=self.since, end=end, seed=seed)
        self.right |= right_answers(sample, traces, seed=seed)

    def review(self, most: int) -> int:
        """Review the first traces that people are asked about."""
        queue = open_queue(self.connections, self.tenant, "routing")
        assert queue
        asked = list(questions(self.connections, queue, queue.waiting[:most]))
        for question in asked:
            known = self.right.get(normalize_query(query_of(question.inputs)), {})
            write_review(self.connections.phoenix, question, known.get("agent", CANNOT_TELL), reviewer=REVIEWER)
        return len(asked)

    def night(self) -> Lived:
        """Decide as the sensor does, and materialize what is due, as its run does."""
        threading.Event().wait(1.1)  # the interval is a second
        at = datetime.now(UTC)
        entry = newest_version(self.connections.configs, self.tenant)
        plan = plan_tenants(
            {self.tenant: entry}, self.instance, self.connections.phoenix, now=at, settings=self.connections.settings
        )
        decision = plan.decisions[self.tenant, "routing"]
        outcome: Mapping[str, object] = {}
        if decision.launch:
            tags = {WINDOW_END_TAG: plan.window_end.isoformat()}
            result = materialize(self.instance, self.tenant, ["routing"], tags)
            assert result.success
            outcome = metadata_of(result, "routing")
        self.since = at
        self.nights.append(Lived(at, decision.reason.value, decision.detail, outcome))
        return self.nights[-1]

    def played(self, folder: Path) -> tuple[PlayedNights, VersionStore]:
        """Play the same nights by a backtest."""
        entry = newest_version(self.connections.configs, self.tenant)
        nights = [night.at for night in self.nights]
        (scenario,) = open_scenarios(self.connections, entry, [entry.parse()], ["routing"], nights, folder)
        (found,), ended = play_all([scenario], nights, Allowance(10**6))
        assert ended == ""
        return found["routing"], VersionStore(scenario.scratch, self.tenant, "routing")


@pytest.fixture
def life(store: TenantConfigStore, instance: dg.DagsterInstance, tenant: str, monkeypatch: pytest.MonkeyPatch) -> Life:
    monkeypatch.setenv("AUTOOPT_SCHEDULE_JITTER", "0")
    config = sample_config(SAMPLE).model_copy(
        update={
            "tenant_id": tenant,
            "optimization_interval_seconds": 1,
            "modules": {"routing": sample_config(SAMPLE).modules["routing"]},
            "rollout": RolloutPolicy(monitor=False),
        }
    )
    write_config(store, RoutingConfigUnified.model_validate(config.model_dump()))
    return Life(Connections(load_settings()), instance, tenant)


def assert_same(life: Life, tmp_path: Path) -> PlayedNights:
    played, scratch = life.played(tmp_path / "scratch")
    assert len(played.nights) == len(life.nights)
    for lived, night in zip(life.nights, played.nights, strict=True):
        assert (night.decision, night.detail) == (lived.reason, lived.detail)
        assert night.verdict == lived.outcome.get("verdict")
        assert night.reason == lived.outcome.get("reason", "")
        assert night.version == lived.outcome.get("version")
        assert night.lm_calls == lived.outcome.get("lm_calls", 0)
        for score in ("incumbent_score", "candidate_score"):
            assert getattr(night, score) == pytest.approx(lived.outcome.get(score), abs=1e-3)
    digests, replayed = (
        {manifest.version: manifest.program_sha256 for manifest in artifacts.versions()}
        for artifacts in (life.artifacts, scratch)
    )
    assert replayed == digests
    assert [entry.alpha for entry in scratch.ledger()] == [entry.alpha for entry in life.artifacts.ledger()]
    assert [step.verdict for step in scratch.sequential_test_steps()] == [
        step.verdict for step in life.artifacts.sequential_test_steps()
    ]
    assert {each.at for each in scratch.transitions()} <= {night.at for night in life.nights}
    return played


def test_a_backtest_decides_as_the_nights_were_decided_live(life: Life, tmp_path: Path) -> None:
    life.traffic(40, SAMPLE.habits)
    assert life.night().reason == "too_few_traces"
    life.traffic(500, SAMPLE.habits)
    assert life.night().outcome["verdict"] == "promoted"
    life.traffic(150, SAMPLE.habits)
    assert life.night().outcome["verdict"] in {"rejected", "inconclusive", "promoted"}
    life.traffic(10, SAMPLE.habits)
    assert life.night().reason == "too_few_traces"

    played = assert_same(life, tmp_path)
    assert played.starts_from is None
    assert [night.reviews_asked for night in played.nights] == [0, 0, 0, 0]
    assert played.reviews_used > 100


def test_a_test_that_awaits_reviews_goes_on_as_they_came(life: Life, tmp_path: Path) -> None:
    life.traffic(560, UNREVIEWED)
    asked = life.night()
    assert asked.outcome["verdict"] == "awaiting_reviews"
    queue = open_queue(life.connections, life.tenant, "routing")
    assert queue
    waiting = len(queue.waiting)
    assert life.review(2) == 2
    assert life.night().reason == "awaiting_reviews"
    life.review(waiting)
    assert life.night().outcome["verdict"] == "promoted"

    played = assert_same(life, tmp_path)
    assert [night.reviews_asked for night in played.nights] == [waiting, 0, 0]
    assert played.nights[0].reviews_needed == asked.outcome["reviews_needed"]


def test_a_model_that_fails_later_ends_the_backtest_and_the_nights_before_are_kept(
    server: LLMServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAST_API_KEY", "k")
    lm = LMSettings(model="openai/m", api_base=server.url, api_key_env="PAST_API_KEY", answer_format="chat")
    config = SHORT_PROMPTS.model_copy(update={"lm": lm})
    stream = reviewed_stream()

    def fail_from_the_second_night(done: int) -> None:
        server.always = 401 if done else None

    scenario = made_scenario(stream, tmp_path / "later", config)
    (found,), ended = play_all([scenario], NIGHTS, Allowance(10**6), show=fail_from_the_second_night)
    assert len(found["routing"].nights) == 1
    assert found["routing"].nights[0].lm_calls > 0
    assert ended.startswith(f"in the night of {NIGHTS[1]:%Y-%m-%d}, language model openai/m")
    assert server.calls > found["routing"].nights[0].lm_calls

    server.always = 401
    with pytest.raises(LMNotConfigured, match="openai/m"):
        play_all([made_scenario(stream, tmp_path / "at-once", config)], NIGHTS, Allowance(10**6))
