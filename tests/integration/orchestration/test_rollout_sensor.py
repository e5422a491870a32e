"""The rollout in real life: an application serves two versions, people judge, and the sensor looks."""

import json
import time
from pathlib import Path

import dagster as dg
import pytest

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.orchestration.sensors.rollouts import rollout_sensor
from autoopt_pipeline.registry.rollout_records import indexed_rollouts
from autoopt_pipeline.registry.transitions import active_rollout
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.reviews.answers import write_review
from autoopt_pipeline.reviews.queue import open_queue, questions
from autoopt_pipeline.settings import Settings, load_settings
from autoopt_pipeline.tenants.config import Agent, RolloutPolicy, RoutingConfigUnified
from autoopt_pipeline.tenants.store import write_config
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import autoopt
from tests.support.review_queues import ask_for_rollout, disagreement
from tests.support.served_decisions import AGENTS, read
from tests.support.served_rollouts import look, serve
from tests.support.stored_programs import bring, made_program, store

REQUESTS = 160


@pytest.fixture
def parts(phoenix: Phoenix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connections:
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    monkeypatch.setenv("AUTOOPT_HOME", str(tmp_path))
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    return Connections(load_settings())


@pytest.fixture
def programs(parts: Connections, tenant: str) -> VersionStore:
    """Two versions of a configured tenant's routing: the second is active, the first keeps half of the requests."""
    write_config(parts.configs, configured(tenant))
    artifacts = parts.artifacts(tenant, "routing")
    store(artifacts, made_program(tenant, demos=["one"]), 1, active=True)
    bring(artifacts, store(artifacts, made_program(tenant, demos=["two"]), 2), RolloutPolicy(holdback_fraction=0.5))
    return artifacts


def configured(tenant: str, **rollout: object) -> RoutingConfigUnified:
    agents = [Agent(name=name) for name in AGENTS]
    return RoutingConfigUnified(tenant_id=tenant, agents=agents, rollout=RolloutPolicy.model_validate(rollout))


def observed(instance: dg.DagsterInstance, tenant: str) -> dict[str, object]:
    records = instance.fetch_observations(dg.AssetRecordsFilter(dg.AssetKey("routing"), [tenant]), limit=10).records
    (record,) = records
    assert record.asset_observation
    return {name: value.value for name, value in record.asset_observation.metadata.items()}


def rollout_reviews(tenant: str) -> int:
    modules = json.loads(autoopt("status", tenant, "--json"))["modules"]
    return next(status["rollout_reviews"] for status in modules if status["module"] == "routing")


def test_a_version_that_users_find_worse_than_its_predecessor_is_rolled_back_by_itself(
    parts: Connections, programs: VersionStore, instance: dg.DagsterInstance
) -> None:
    one, two = [manifest.version for manifest in programs.versions()]
    serve(parts, programs, REQUESTS, lambda decision: decision.version == one)
    told = autoopt("rollouts", programs.tenant_id)
    assert f"{two} is active" in told
    assert f"{one} keeps 50 % of requests" in told
    assert "clearly worse" in told
    line = look(instance, parts, programs)
    assert f"{two} -> {one}" in line
    last = programs.last_transition()
    assert last
    assert (last.to_version, last.actor, last.canary) == (one, "rollout monitor", None)
    assert "clearly worse" in last.reason
    said = observed(instance, programs.tenant_id)
    assert (said["event"], said["from"], said["to"]) == ("rolled_back", two, one)
    assert (said["score"], said["score_of_predecessor"]) == ("0.0 %", "100.0 %")
    assert "no rollout is active" in autoopt("rollouts", programs.tenant_id)
    assert "rolled back" in autoopt("versions", programs.tenant_id, "routing")
    assert "worse: " in autoopt("show", programs.tenant_id, "routing", two)
    assert "ended" in autoopt("rollouts", programs.tenant_id, "routing")


def test_reviews_of_disagreements_find_a_worse_version_of_which_no_outcome_tells(
    parts: Connections, programs: VersionStore, instance: dg.DagsterInstance
) -> None:
    tenant, (one, two) = programs.tenant_id, [manifest.version for manifest in programs.versions()]
    serve(parts, programs, 24, lambda decision: True)
    drawn = [disagreement(decision) for decision in read(parts.phoenix, tenant, "routing", 24)]
    ask_for_rollout(programs, drawn[:12])
    assert "0 reviewed disagreements (0 for it, 0 for its predecessor)" in look(instance, parts, programs)
    assert rollout_reviews(tenant) == 12
    assert "answer 12 requests differently that nobody has reviewed yet" in autoopt("why", tenant, "routing")
    (listed,) = json.loads(autoopt("review", "--json"))
    assert (listed["candidate"], listed["to_review"], listed["reviewed"]) == (two, 12, 0)
    queue = open_queue(parts, tenant, "routing")
    assert queue
    asked = list(questions(parts, queue, queue.waiting))
    for question in asked[:7]:
        write_review(parts.phoenix, question, AGENTS[0], reviewer="ada")  # what the older version says
    (shown,) = json.loads(autoopt("rollouts", tenant, "--json"))["active"]
    assert (shown["reviewed_disagreements"], shown["disagreements_to_review"]) == (7, 5)
    for question in asked[7:]:
        write_review(parts.phoenix, question, AGENTS[0], reviewer="ada")
    line = look(instance, parts, programs)
    assert f"{two} -> {one}: clearly worse" in line
    assert "12 reviewed disagreements (0 for it, 12 for its predecessor)" in line
    assert observed(instance, tenant)["event"] == "rolled_back"
    assert open_queue(parts, tenant, "routing") is None
    write_review(parts.phoenix, asked[0], AGENTS[1], reviewer="late")  # hurts nothing
    assert rollout_reviews(tenant) == 0


def test_a_version_that_does_as_well_stays_watched_until_its_time_is_up(
    parts: Connections, programs: VersionStore, instance: dg.DagsterInstance
) -> None:
    serve(parts, programs, 24, lambda decision: True)
    line = look(instance, parts, programs)
    assert "open, p 1" in line
    assert "on average 100.0 %" in line
    assert active_rollout(programs.last_transition())
    write_config(parts.configs, configured(programs.tenant_id, max_days=1e-6))
    line = look(instance, parts, programs)
    assert "not clearly worse" in line
    last = programs.last_transition()
    assert last
    assert (last.to_version, last.canary) == (programs.versions()[1].version, None)
    assert observed(instance, programs.tenant_id)["event"] == "rollout_finished"


def test_a_canary_that_users_find_better_becomes_active(
    parts: Connections, programs: VersionStore, instance: dg.DagsterInstance
) -> None:
    two = programs.versions()[1].version
    three = store(programs, made_program(programs.tenant_id, demos=["three"]), 3)
    bring(programs, three, RolloutPolicy(canary_fraction=0.5))
    serve(parts, programs, REQUESTS, lambda decision: decision.version == three)
    line = look(instance, parts, programs)
    assert "clearly better" in line
    active = programs.active()
    assert active
    assert active.version == three
    assert f"{two} -> {three}" in autoopt("history", programs.tenant_id, "routing")


def test_the_first_version_is_compared_with_the_baseline(
    parts: Connections, tenant: str, instance: dg.DagsterInstance
) -> None:
    write_config(parts.configs, configured(tenant))
    artifacts = parts.artifacts(tenant, "routing")
    only = store(artifacts, made_program(tenant, demos=["one"]), 1)
    bring(artifacts, only, RolloutPolicy(holdback_fraction=0.5))
    serve(parts, artifacts, REQUESTS, lambda decision: decision.version is None)
    assert f"{only} -> baseline" in look(instance, parts, artifacts)
    assert artifacts.active() is None


@pytest.mark.parametrize(("gone", "reason"), [(False, "rollout.monitor is false"), (True, "the tenant was removed")])
def test_a_watch_that_nobody_wants_any_more_ends_and_the_new_version_stays(
    gone: bool, reason: str, parts: Connections, programs: VersionStore, instance: dg.DagsterInstance
) -> None:
    if gone:
        parts.configs.write(programs.tenant_id, None)
    else:
        write_config(parts.configs, configured(programs.tenant_id, monitor=False))
    assert reason in look(instance, parts, programs)
    last = programs.last_transition()
    assert last
    assert (last.to_version, last.canary) == (programs.versions()[1].version, None)


class TestSensor:
    def evaluate(self, instance: dg.DagsterInstance, settings: Settings) -> dg.SkipReason:
        context = dg.build_sensor_context(instance=instance, resources={"services": Services()})
        (found,) = [rollout_sensor(settings)(context)]
        assert isinstance(found, dg.SkipReason)
        return found

    def test_looks_at_what_is_due_and_leaves_alone_what_was_looked_at(
        self, parts: Connections, programs: VersionStore, instance: dg.DagsterInstance
    ) -> None:
        time.sleep(0.01)
        assert self.evaluate(instance, parts.settings).skip_message == "1 rollouts, 1 analyzed"
        assert self.evaluate(instance, parts.settings).skip_message == "1 rollouts, 0 analyzed"

    def test_an_error_of_one_tenant_is_an_error_of_the_tick_and_the_others_are_looked_at(
        self, parts: Connections, programs: VersionStore, instance: dg.DagsterInstance
    ) -> None:
        broken = f"{programs.tenant_id}-b"
        parts.configs.write(broken, {"tenant_id": broken, "lm": 7})
        bad = parts.artifacts(broken, "routing")
        bring(bad, store(bad, made_program(broken, demos=["one"]), 1), RolloutPolicy())
        with pytest.raises(dg.DagsterError, match=rf"1 of 2 rollouts .*{broken}/routing: .*lm"):
            self.evaluate(instance, parts.settings)
        looked = {entry.tenant_id: entry.analyzed_at for entry in indexed_rollouts(parts.files)}
        assert looked[programs.tenant_id]
        assert looked[broken] is None
