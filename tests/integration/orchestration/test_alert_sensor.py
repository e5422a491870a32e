"""The alert sensor on a real Dagster instance: runs that failed, sensors that ticked, a receiver that listens."""

import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    TickData,
    TickStatus,
)
from dagster._time import get_current_timestamp
from dagster._utils.error import SerializableErrorInfo

from autoopt_pipeline.errors import AlertNotDelivered
from autoopt_pipeline.names import OPTIMIZATION_SENSOR, PARTITIONS_SENSOR, ROLLOUT_SENSOR
from autoopt_pipeline.orchestration.partitions import register_tenant, tenants_partitions
from autoopt_pipeline.orchestration.sensors import alerts as alert_sensors
from autoopt_pipeline.orchestration.sensors.alerts import build_alert_sensors
from autoopt_pipeline.run_history import ended_runs
from autoopt_pipeline.run_history.ticks import causes
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.store import open_config_store
from tests.support.alert_receiver import Receiver, alert_receiver
from tests.support.scraped_metrics import exporter, scraped
from tests.support.sensor_daemon import daemon_of
from tests.support.tenant_history import configure, failed_run, lost_run


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with alert_receiver() as listening:
        yield listening


WATCHED_SENSOR = "somebody's_sensor"


class Ticks:
    """One receiver's alert sensor, and its cursor between one tick and the next, which a failed tick leaves alone."""

    def __init__(self, instance: dg.DagsterInstance, **settings: object) -> None:
        (self._sensor,) = build_alert_sensors(
            Settings.model_validate({"alert_after_failures": 2, **settings}), [WATCHED_SENSOR]
        )
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
    monkeypatch.setattr(alert_sensors, "EVENT_LOG_LAG", timedelta(0))
    monkeypatch.setattr(alert_sensors, "_GROUP_INTERVAL", timedelta(0))


@pytest.fixture
def tick(instance: dg.DagsterInstance, receiver: Receiver) -> Ticks:
    failed_run(instance, "past", ["routing"])  # what happened before is no news
    return Ticks(instance, alert_webhook_url=receiver.url, dagster_ui_url="http://ui/")


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
    assert build_alert_sensors(Settings(), ["auto_optimization_sensor"]) == []


def test_a_failed_run_is_alerted_once_with_its_cause_and_a_link(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks
) -> None:
    run_id = run(instance, "acme", "routing", "modality", "unified")
    assert tick() == "1 alerts"
    assert tick() == "0 alerts"
    (alert,) = receiver.alerts
    assert (alert["kind"], alert["detail"]) == ("run_failed", "tenant acme has no project -> send traces")
    assert [one["module"] for one in alert["affected"]] == ["routing", "unified"]
    assert {one["url"] for one in alert["affected"]} == {f"http://ui/runs/{run_id}"}


def test_a_run_whose_process_died_is_alerted_for_all_its_modules(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks
) -> None:
    lost_run(instance, "acme", ["routing", "modality"])
    instance.report_runless_asset_event(dg.AssetMaterialization("routing", partition="acme"))
    tick()
    (alert,) = receiver.alerts
    assert [one["module"] for one in alert["affected"]] == ["modality"]
    assert alert["detail"] == "This run has been marked as failed from outside the execution context."


def test_a_tag_that_is_added_later_makes_no_second_failure(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks
) -> None:
    run_id = run(instance, "acme", "routing")
    tick()
    instance.add_run_tags(run_id, {"seen": "yes"})
    tick()
    assert receiver.told() == [("run_failed", 1)]


def test_of_consecutive_failures_the_first_and_every_so_many_th_are_alerted(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks
) -> None:
    for _ in range(4):
        run(instance, "beta", "routing", "modality")
        run(instance, "beta", "modality")
        tick()
    repeatedly = ("failing_repeatedly", 1)
    assert receiver.told() == [("run_failed", 1), repeatedly, repeatedly]
    assert receiver.alerts[2]["affected"][0]["detail"] == "4 in a row: tenant beta has no project -> send traces"
    MENDED.add("beta")
    run(instance, "beta", "routing")
    MENDED.remove("beta")
    run(instance, "beta", "routing")
    tick()
    assert receiver.told()[3:] == [("run_failed", 1)]


def test_a_module_that_failed_before_there_was_a_receiver_is_alerted_when_it_goes_on_failing(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks
) -> None:
    failed_run(instance, "past", ["routing"])
    tick()
    assert receiver.told() == [("failing_repeatedly", 1)]


def test_a_failure_whose_module_has_recovered_before_the_tick_is_alerted_all_the_same(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks
) -> None:
    run(instance, "gamma", "routing")
    MENDED.add("gamma")
    run(instance, "gamma", "routing")
    tick()
    (alert,) = receiver.alerts
    assert alert["affected"][0]["detail"] == "tenant gamma has no project -> send traces (it has had an outcome since)"


def test_a_cursor_that_means_nothing_is_begun_anew(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks
) -> None:
    tick.cursor = "somebody's"
    failed_run(instance, "acme", ["routing"])
    assert tick() == "alerts begin with what happens from now on"
    tick()
    assert receiver.alerts == []


def test_after_the_first_alert_of_a_kind_the_others_are_grouped(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_sensors, "_GROUP_INTERVAL", timedelta(minutes=15))
    for n in range(4):
        failed_run(instance, f"t{n}", ["routing"])
        tick()
    assert receiver.told() == [("run_failed", 1)]
    monkeypatch.setattr(alert_sensors, "_GROUP_INTERVAL", timedelta(0))
    tick()
    assert receiver.told() == [("run_failed", 1), ("run_failed", 3)]


def test_of_too_many_failures_the_newest_are_alerted_and_the_alert_says_so(
    instance: dg.DagsterInstance,
    receiver: Receiver,
    tick: Ticks,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ended_runs, "PAGE", 3)
    for n in range(8):
        failed_run(instance, f"t{n}", ["routing"])
    failed_run(instance, "t0", ["somebody_elses_asset"])
    tick()
    assert tick() == "0 alerts"
    (alert,) = receiver.alerts
    assert [one["tenant"] for one in alert["affected"]] == ["t6", "t7"]
    assert alert["detail"].startswith("too many runs failed to count them all, so only the newest are in here")
    assert "too many runs failed to count them all" in capfd.readouterr().err  # the log


def test_a_rollback_is_alerted_and_other_observations_are_not(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks
) -> None:
    for event in ("rollout_finished", "rolled_back", "spent"):
        metadata = {"event": event, "reason": "20 of 50 wrong", "from": "v2", "to": "v1"}
        instance.report_runless_asset_event(dg.AssetObservation("routing", partition="acme", metadata=metadata))
    tick()
    tick()
    (alert,) = receiver.alerts
    assert alert["summary"] == "acme/routing was rolled back"
    assert alert["detail"] == "v2 -> v1: 20 of 50 wrong"
    assert alert["affected"][0]["url"] == "http://ui/assets/routing?view=partitions"


def test_a_receiver_that_is_down_gets_later_what_happened_meanwhile_in_one_message(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks
) -> None:
    receiver.status = 500
    for tenant in ("acme", "beta"):
        run(instance, tenant, "routing")
        with pytest.raises(AlertNotDelivered, match="webhook answered HTTP 500 -> check AUTOOPT_ALERT_WEBHOOK_URL"):
            tick()
    receiver.status = 200
    assert tick() == "1 alerts"
    assert receiver.told() == [("run_failed", 2)]
    assert "hidden" not in str(tick.cursor)


def test_what_was_delivered_in_a_tick_stays_so_when_the_receiver_goes_down_in_it(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks
) -> None:
    for _ in range(2):
        run(instance, "acme", "routing")
    receiver.takes = 1
    assert tick() == "1 alerts"
    with pytest.raises(AlertNotDelivered):
        tick()
    receiver.takes = 9
    tick()
    assert receiver.told() == [("run_failed", 1), ("failing_repeatedly", 1)]


def test_an_alert_that_is_refused_for_good_is_passed_over(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.status = 400
    run(instance, "acme", "routing")
    tick()
    receiver.status = 200
    run(instance, "beta", "routing")
    tick()
    assert [alert["summary"] for alert in receiver.alerts] == ["beta/routing failed"]
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "passed over run_failed" in line]
    assert line.endswith(
        "acme/routing failed: webhook answered HTTP 400 -> check AUTOOPT_ALERT_WEBHOOK_URL and what listens there"
    )


def test_each_receiver_has_a_sensor_of_its_own(instance: dg.DagsterInstance, receiver: Receiver) -> None:
    urls = {"alert_webhook_url": receiver.url, "alert_slack_url": receiver.url}
    sensors = build_alert_sensors(Settings.model_validate(urls), [])
    assert [sensor.name for sensor in sensors] == ["webhook_alert_sensor", "slack_alert_sensor"]
    slack = Ticks(instance, alert_slack_url=receiver.url)
    run(instance, "acme", "routing")
    slack()
    assert receiver.alerts[0]["text"].splitlines()[0] == ":warning: *acme/routing failed*"


@pytest.fixture
def watched(instance: dg.DagsterInstance) -> Callable[..., None]:
    """Records ticks of the watched sensor as Dagster does: True for each that failed."""
    location = RegisteredCodeLocationOrigin("here")  # ty: ignore[abstract-class-instantiation]
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "all"), WATCHED_SENSOR)
    state = InstigatorState(origin, InstigatorType.SENSOR, InstigatorStatus.RUNNING)
    instance.add_instigator_state(state)

    def record(*failed: bool) -> None:
        for one in failed:
            instance.create_tick(
                TickData(
                    state.instigator_origin_id,
                    WATCHED_SENSOR,
                    InstigatorType.SENSOR,
                    TickStatus.FAILURE if one else TickStatus.SKIPPED,
                    timestamp=get_current_timestamp(),
                    error=SerializableErrorInfo("Error: it broke", [], "Error") if one else None,
                    selector_id=state.selector_id,
                )
            )

    return record


def test_an_outage_before_a_new_receivers_second_tick_is_alerted_when_both_work_again(
    instance: dg.DagsterInstance, receiver: Receiver, tick: Ticks, watched: Callable[..., None]
) -> None:
    receiver.status = 503
    watched(True, True)
    with pytest.raises(AlertNotDelivered):
        tick()
    watched(False)
    receiver.status = 200
    tick()
    tick()
    (alert,) = receiver.alerts
    assert alert["summary"].startswith(f"sensor {WATCHED_SENSOR} failed 2 ticks in a row, since ")
    assert alert["summary"].endswith(", and works again")


@pytest.mark.parametrize("ticks", [2, 30])
def test_a_new_receiver_gets_the_outage_that_goes_on_and_not_those_that_have_ended(
    instance: dg.DagsterInstance, receiver: Receiver, watched: Callable[..., None], ticks: int
) -> None:
    watched(True, True, False)
    began = Ticks(instance, alert_webhook_url=receiver.url)
    began()
    assert receiver.alerts == []
    watched(*[True] * ticks)
    late = Ticks(instance, alert_webhook_url=receiver.url)
    late()
    watched(True, False)
    late()
    (alert,) = receiver.alerts
    assert "failed 2 ticks in a row" in alert["summary"]
    assert not alert["summary"].endswith(", and works again")


WEBHOOK_SENSOR = "webhook_alert_sensor"
PLANNING = (PARTITIONS_SENSOR, OPTIMIZATION_SENSOR, ROLLOUT_SENSOR)


def test_outages_are_alerted_by_the_daemons_ticks_also_those_that_began_while_the_receiver_was_down(
    home: Path, receiver: Receiver, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "HOME": str(home / ".autoopt"),
        "PHOENIX_ENDPOINT": "http://127.0.0.1:9",
        "ALERT_AFTER_FAILURES": "2",
        "ALERT_WEBHOOK_URL": receiver.url,
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AUTOOPT_{name}", value)
    store = home / ".autoopt" / "config.db"
    store.parent.mkdir()
    store.write_text("no database, whatever its name says")
    with daemon_of(instance, monkeypatch) as dagster:
        dagster.tick(WEBHOOK_SENSOR, *PLANNING, *PLANNING)
        receiver.status = 503
        (refused,) = dagster.tick(WEBHOOK_SENSOR)
        assert "webhook answered HTTP 503" in causes(refused)[-1].message
        store.unlink()
        configure(open_config_store(f"sqlite:///{store}"), "acme", enable_auto_optimization=False)
        assert not any(tick.is_failure for tick in dagster.tick(*PLANNING))
        receiver.status = 200
        dagster.tick(WEBHOOK_SENSOR)
        (store_down,) = receiver.alerts
        assert store_down["kind"] == "unreachable"
        assert store_down["summary"].startswith("the configuration store failed 2 ticks in a row, since ")
        assert store_down["summary"].endswith(", and works again")
        shown = scraped(exporter(instance))
        assert shown["autoopt_decisions", "disabled"] == 5
        assert shown["autoopt_tick_failed", "auto_optimization_sensor"] == 0
        assert shown["autoopt_oldest_due_seconds",] == 0
        assert math.isnan(shown["autoopt_phoenix_up",])

        configure(open_config_store(f"sqlite:///{store}"), "acme")
        dagster.tick(OPTIMIZATION_SENSOR, WEBHOOK_SENSOR)
        assert len(receiver.alerts) == 1
        dagster.tick(OPTIMIZATION_SENSOR, WEBHOOK_SENSOR)
        _, phoenix_down = receiver.alerts
        shown = scraped(exporter(instance))
        assert shown["autoopt_decisions", "disabled"] == 5  # the last tick that did not fail
        assert shown["autoopt_tick_failed", "auto_optimization_sensor"] == 1
        assert shown["autoopt_tick_duration_seconds", "auto_optimization_sensor"] > 0
        assert shown["autoopt_phoenix_up",] == 0
        assert phoenix_down["kind"] == "unreachable"
        assert phoenix_down["summary"].startswith("Phoenix failed 2 ticks in a row, since ")
        assert phoenix_down["detail"].startswith("Phoenix http://127.0.0.1:9 does not answer")
        dagster.tick(OPTIMIZATION_SENSOR, WEBHOOK_SENSOR, OPTIMIZATION_SENSOR, WEBHOOK_SENSOR)
        assert len(receiver.alerts) == 2  # an outage that goes on is one


def test_a_module_that_is_gone_is_alerted_though_no_tick_fails(
    home: Path, receiver: Receiver, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "HOME": str(home / ".autoopt"),
        "ALERT_AFTER_FAILURES": "2",
        "ALERT_WEBHOOK_URL": receiver.url,
    }.items():
        monkeypatch.setenv(f"AUTOOPT_{name}", value)
    store = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")
    configure(store, "acme", modules={"gone": {}})
    with daemon_of(instance, monkeypatch) as dagster:
        ticks = dagster.tick(WEBHOOK_SENSOR, OPTIMIZATION_SENSOR, OPTIMIZATION_SENSOR, WEBHOOK_SENSOR)
    assert not any(tick.is_failure for tick in ticks)
    (gone,) = receiver.alerts
    assert gone["kind"] == "unreachable"
    assert gone["summary"].startswith("finding the tenants' modules failed 2 ticks in a row")
    assert gone["detail"].startswith("1 tenant: module 'gone' is not installed here -> ")
