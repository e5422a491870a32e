"""The alert sensor on a real Dagster instance: runs that failed, sensors that ticked, a receiver that listens."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import InstigatorTick
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.sensor import execute_sensor_iteration

from autoopt_pipeline.monitoring.alerts import delivery, outbox
from autoopt_pipeline.monitoring.alerts.models import Kind, make_alert
from autoopt_pipeline.monitoring.alerts.outbox import Outbox
from autoopt_pipeline.names import ALERT_SENSOR, OPTIMIZATION_SENSOR
from autoopt_pipeline.orchestration.partitions import register_tenant, tenants_partitions
from autoopt_pipeline.orchestration.sensors.alerts import State, build_alerting
from autoopt_pipeline.run_history import feed
from autoopt_pipeline.run_history.ticks import causes, finished_ticks, sensor_states
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.store import open_config_store
from tests.support.alert_receiver import Receiver, alert_receiver
from tests.support.scraped_metrics import exporter, scraped
from tests.support.tenant_history import configure, failed_run


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with alert_receiver() as listening:
        yield listening


class Looks:
    """The alert sensor, and its cursor between one look and the next."""

    def __init__(self, instance: dg.DagsterInstance, **settings: object) -> None:
        (self._sensor,) = build_alerting(Settings.model_validate({"alert_after_failures": 2, **settings}), [])
        self._instance = instance
        self.cursor: str | None = None
        self()

    def __call__(self) -> str:
        context = dg.build_sensor_context(instance=self._instance, cursor=self.cursor)
        result = self._sensor(context)
        assert isinstance(result, dg.SkipReason)
        self.cursor = context.cursor
        return result.skip_message or ""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "EVENT_LOG_LAG", timedelta(0))
    monkeypatch.setattr(delivery, "_ATTEMPTS", 1)


@pytest.fixture
def look(instance: dg.DagsterInstance, receiver: Receiver) -> Looks:
    failed_run(instance, "acme", ["routing"])  # the past is no news
    return Looks(instance, alert_webhook_url=receiver.url, dagster_ui_url="http://ui/")


def state_of(cursor: str | None) -> State:
    state = State.load(cursor)
    assert state is not None
    return state


MENDED: set[str] = set()


@dg.asset(name="routing", partitions_def=tenants_partitions)
def routing_fails(context: dg.AssetExecutionContext) -> None:
    if context.partition_key not in MENDED:
        raise dg.Failure(f"tenant {context.partition_key} has no project -> send traces")


@dg.asset(name="modality", partitions_def=tenants_partitions)
def modality_works() -> None: ...


@dg.asset(name="unified", partitions_def=tenants_partitions, deps=["routing", "modality"])
def unified_needs_both() -> None: ...


def run(instance: dg.DagsterInstance, tenant: str, *modules: str) -> str:
    """A real run of these."""
    register_tenant(instance, tenant)
    job = dg.Definitions([routing_fails, modality_works, unified_needs_both]).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance,
        partition_key=tenant,
        asset_selection=[dg.AssetKey(module) for module in modules],
        raise_on_error=False,
    ).run_id


def test_who_configures_no_receiver_has_no_alert_sensor() -> None:
    assert build_alerting(Settings(), ["auto_optimization_sensor"]) == []


def test_a_failed_run_is_told_once_with_its_cause_and_a_link(
    instance: dg.DagsterInstance, receiver: Receiver, look: Looks
) -> None:
    run_id = run(instance, "acme", "routing", "modality", "unified")
    assert look().startswith("1 alerts")
    look()
    (alert,) = receiver.alerts
    assert (alert["kind"], alert["detail"]) == ("run_failed", "tenant acme has no project -> send traces")
    assert [one["module"] for one in alert["affected"]] == ["routing", "unified"]
    assert {one["url"] for one in alert["affected"]} == {f"http://ui/runs/{run_id}"}


def test_a_tag_that_is_added_later_makes_no_second_failure(
    instance: dg.DagsterInstance, receiver: Receiver, look: Looks
) -> None:
    run_id = run(instance, "acme", "routing")
    look()
    instance.add_run_tags(run_id, {"seen": "yes"})
    look()
    assert receiver.told() == [("run_failed", 1)]


def test_repeated_failures_are_told_and_so_is_their_end(
    instance: dg.DagsterInstance, receiver: Receiver, look: Looks
) -> None:
    for _ in range(3):
        run(instance, "beta", "routing", "modality")
        run(instance, "beta", "modality")
        look()
    MENDED.add("beta")
    run(instance, "beta", "routing")
    look()
    assert receiver.told() == [("run_failed", 1), ("failing_repeatedly", 1), ("recovered", 1)]


def test_a_cursor_that_means_nothing_is_begun_anew(
    instance: dg.DagsterInstance, receiver: Receiver, look: Looks
) -> None:
    look.cursor = "somebody's"
    failed_run(instance, "acme", ["routing"])
    assert look() == "what happens from now on is told"
    look()
    assert receiver.alerts == []


def test_many_failed_runs_are_read_in_pieces_and_none_is_missed(
    instance: dg.DagsterInstance, receiver: Receiver, look: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "RUNS_PER_LOOK", 3)
    for n in range(8):
        failed_run(instance, f"t{n}", ["routing"])
    failed_run(instance, "t0", ["somebody_elses_asset"])
    state = state_of(look.cursor)
    failures = 0
    for _ in range(4):
        look()
        now_failing = len(state_of(look.cursor).memory.failures.streaks)
        assert now_failing - failures <= 3
        failures = now_failing
    assert failures == 8
    assert state.memory.failures.streaks == {}
    assert receiver.told() == [("run_failed", 3)]  # the other five follow within the hour


def test_a_rollback_is_told_and_other_observations_are_not(
    instance: dg.DagsterInstance, receiver: Receiver, look: Looks
) -> None:
    for event in ("watch_ended", "rolled_back", "spent"):
        metadata = {"event": event, "reason": "20 of 50 wrong", "from": "v2", "to": "v1"}
        instance.report_runless_asset_event(dg.AssetObservation("routing", partition="acme", metadata=metadata))
    look()
    look()
    (alert,) = receiver.alerts
    assert alert["summary"] == "routing of acme was rolled back"
    assert alert["detail"] == "v2 -> v1: 20 of 50 wrong"


def test_a_receiver_that_is_down_gets_its_alerts_later_and_does_not_hold_up_the_other(
    instance: dg.DagsterInstance, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_FIRST_WAIT", timedelta(0))
    with alert_receiver() as slack:
        look = Looks(instance, alert_webhook_url=receiver.url, alert_slack_url=slack.url)
        slack.status = 500
        run(instance, "acme", "routing")
        assert "1 wait for slack" in look()
        assert (receiver.told(), slack.asked) == ([("run_failed", 1)], 1)
        slack.status = 200
        assert look() == look() == "0 alerts"
        assert [body["text"].splitlines()[0] for body in slack.alerts] == [":warning: *acme/routing failed*"]
        assert len(receiver.alerts) == 1
        assert "hidden" not in state_of(look.cursor).model_dump_json()


def test_the_daemons_ticks_tell_of_outages_and_of_alerts_that_nobody_took(
    home: Path, receiver: Receiver, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "HOME": str(home / ".autoopt"),
        "PHOENIX_ENDPOINT": "http://127.0.0.1:9",
        "SENSOR_INTERVAL_SECONDS": "1",
        "ALERT_AFTER_FAILURES": "2",
        "ALERT_WEBHOOK_URL": receiver.url,
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AUTOOPT_{name}", value)
    store = home / ".autoopt" / "config.db"
    store.parent.mkdir()
    store.write_text("no database, whatever its name says")
    target = ModuleTarget("autoopt_pipeline.definitions", None, None, "autoopt")
    with create_test_daemon_workspace_context(target, instance) as workspace:

        def tick_until(done: Callable[[], bool]) -> None:
            for _ in range(15):
                list(execute_sensor_iteration(workspace, logging.getLogger(__name__), None, None))
                if done():
                    return
                time.sleep(1)  # the sensors' least interval

        tick_until(lambda: len(receiver.alerts) == 1)
        store.unlink()
        configure(open_config_store(f"sqlite:///{store}"), "acme", enable_auto_optimization=False)
        tick_until(lambda: len(receiver.alerts) == 2)
        shown = scraped(exporter(instance))
        assert shown["autoopt_decisions", "disabled"] == 5
        assert shown["autoopt_tick_failed", "auto_optimization_sensor"] == 0
        assert shown["autoopt_oldest_due_seconds",] == 0
        assert math.isnan(shown["autoopt_phoenix_reachable",])

        configure(open_config_store(f"sqlite:///{store}"), "acme")
        tick_until(lambda: len(receiver.alerts) == 3)
        shown = scraped(exporter(instance))
        assert shown["autoopt_decisions", "disabled"] == 5  # the last look that did not fail
        assert shown["autoopt_tick_failed", "auto_optimization_sensor"] == 1
        assert shown["autoopt_tick_duration_seconds", "auto_optimization_sensor"] > 0
        assert shown["autoopt_phoenix_reachable",] == 0
        told = {(alert["kind"], alert["summary"].split(" failed")[0]): alert["detail"] for alert in receiver.alerts}
        assert told.keys() == {
            ("unreachable", "the configuration store"),
            ("reachable", "the configuration store works again"),
            ("unreachable", "Phoenix"),
        }
        assert told["unreachable", "Phoenix"].startswith("Phoenix http://127.0.0.1:9 does not answer")

        leave_an_old_alert(instance)
        tick_until(lambda: last_look(instance).is_failure)
        assert "1 alerts for webhook are given up" in causes(last_look(instance))[-1].message
        tick_until(lambda: not last_look(instance).is_failure)
        assert state_of(last_look(instance).cursor).outboxes["webhook"].waiting == ()
        assert len(receiver.alerts) == 3


def test_a_module_that_is_gone_is_told_though_no_tick_fails(
    home: Path, receiver: Receiver, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "HOME": str(home / ".autoopt"),
        "SENSOR_INTERVAL_SECONDS": "1",
        "ALERT_AFTER_FAILURES": "2",
        "ALERT_WEBHOOK_URL": receiver.url,
    }.items():
        monkeypatch.setenv(f"AUTOOPT_{name}", value)
    store = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")
    configure(store, "acme", modules={"gone": {}})
    target = ModuleTarget("autoopt_pipeline.definitions", None, None, "autoopt")
    with create_test_daemon_workspace_context(target, instance) as workspace:
        for alerts in (1, 2):
            for _ in range(15):
                list(execute_sensor_iteration(workspace, logging.getLogger(__name__), None, None))
                if len(receiver.alerts) == alerts:
                    break
                time.sleep(1)  # the sensors' least interval
            state = sensor_states(instance)[OPTIMIZATION_SENSOR]
            assert not any(tick.is_failure for tick in finished_ticks(instance, state, limit=50))
            store.write("acme", {"tenant_id": "acme", "modules": {}})
    gone, well = receiver.alerts
    assert gone["kind"] == "unreachable"
    assert gone["summary"].startswith("finding the tenants' modules failed 2 looks in a row")
    assert (well["kind"], well["summary"]) == ("reachable", "finding the tenants' modules works again")
    assert gone["detail"].startswith("1 tenant: module 'gone' is not installed here -> ")


def leave_an_old_alert(instance: dg.DagsterInstance) -> None:
    """Set the cursor, as one can in the UI."""
    state = sensor_states(instance)[ALERT_SENSOR]
    data = state.sensor_instigator_data
    assert data
    before = state_of(data.cursor)
    old = make_alert(Kind.TEST, datetime.now(UTC) - timedelta(days=2), "hello")
    after = before.model_copy(update={"outboxes": {"webhook": Outbox(waiting=(old,))}})
    instance.update_instigator_state(state.with_data(data._replace(cursor=after.dump())))


def last_look(instance: dg.DagsterInstance) -> InstigatorTick:
    return finished_ticks(instance, sensor_states(instance)[ALERT_SENSOR], limit=1)[0]
