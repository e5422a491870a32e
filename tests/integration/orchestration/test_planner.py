"""Sensors and planning on a real Dagster instance with real run records, and a real Phoenix."""

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterEventType
from dagster._core.events import StepMaterializationData
from dagster._core.test_utils import create_run_for_test
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.errors import PlanningFailed
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.names import ATTEMPT_TAG, WINDOW_END_TAG
from autoopt_pipeline.orchestration import planner
from autoopt_pipeline.orchestration.partitions import register_tenant, registered_tenants
from autoopt_pipeline.orchestration.planner import WHOLE_TENANT, Plan, PlanOptions, plan_tenants
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.orchestration.run_requests import run_requests
from autoopt_pipeline.orchestration.sensors.optimization import summary
from autoopt_pipeline.orchestration.sensors.partitions import partition_changes
from autoopt_pipeline.run_history.lm_usage import read_usage, report_usage
from autoopt_pipeline.run_history.outcomes import (
    failure_horizon,
    read_attempts,
    read_outcomes,
)
from autoopt_pipeline.scheduling.budgets import LMUsage
from autoopt_pipeline.scheduling.conditions import MAX_BACKOFF, Attempts, Evidence, Reason, ScheduleDecision, decide
from autoopt_pipeline.scheduling.turns import QueuePosition, queue_order
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.phoenix_traffic import requests
from tests.support.tenant_history import MODULES, configure, failed_run, lost_run, materialize

HOUR = timedelta(hours=1)
SETTINGS = Settings(settling_seconds=0)


@pytest.fixture
def store(tmp_path: Path) -> TenantConfigStore:
    return open_config_store(f"sqlite:///{tmp_path / 'config.db'}")


@pytest.fixture
def planned(store: TenantConfigStore, instance: dg.DagsterInstance, phoenix: Phoenix) -> Callable[..., Plan]:
    def plan(now: datetime | None = None) -> Plan:
        return plan_tenants(store.current(), instance, phoenix, now=now or datetime.now(UTC), settings=SETTINGS)

    return plan


def reasons(plan: Plan) -> dict[tuple[str, str], Reason]:
    """Those of the modules that `configure` turns on; the others are disabled."""
    shown = {*MODULES, WHOLE_TENANT}
    return {key: decision.reason for key, decision in plan.decisions.items() if key[1] in shown}


def test_a_new_tenant_with_enough_traces_is_due_with_all_its_modules_in_one_run(
    store: TenantConfigStore, phoenix: Phoenix, tenant: str, planned: Callable[[], Plan]
) -> None:
    configure(store, tenant, min_samples_for_optimization=20)
    send_traffic(phoenix, tenant, requests(25, TrafficProfile(reviewed=0)))
    plan = planned()
    (request,) = run_requests(plan, list(plan.due()))
    assert request.partition_key == tenant
    assert request.asset_selection == [dg.AssetKey("modality"), dg.AssetKey("routing")]
    assert request.tags["autoopt/window_end"] == plan.window_end.isoformat()
    assert request.tags["autoopt/new_evidence"] == "modality=25+0,routing=25+0"


def test_every_tenant_that_is_not_launched_is_explained(
    store: TenantConfigStore,
    phoenix: Phoenix,
    tenant: str,
    instance: dg.DagsterInstance,
    planned: Callable[[], Plan],
) -> None:
    few, off, fresh, broken, nowhere, busy = (
        f"{tenant}-{name}" for name in ("few", "off", "fresh", "broken", "nowhere", "busy")
    )
    send_traffic(phoenix, few, requests(3))
    for name in (few, fresh, nowhere, busy):
        configure(store, name)
    configure(store, off, enable_auto_optimization=False)
    store.write(broken, {"tenant_id": broken, "min_samples_for_optimization": "many"})
    for module in MODULES:
        materialize(instance, fresh, module, traces=1, end=datetime.now(UTC))
    running = create_run_for_test(
        instance,
        tags={"dagster/partition": busy},
        status=dg.DagsterRunStatus.STARTED,
        asset_selection=frozenset({dg.AssetKey("modality")}),
    )
    plan = planned()
    assert reasons(plan) == {
        (broken, WHOLE_TENANT): Reason.ERROR,
        **{(few, module): Reason.TOO_FEW_TRACES for module in MODULES},
        **{(fresh, module): Reason.NOT_DUE for module in MODULES},
        **{(nowhere, module): Reason.TOO_FEW_TRACES for module in MODULES},
        **{(off, module): Reason.DISABLED for module in MODULES},
        **{(busy, module): Reason.IN_PROGRESS for module in MODULES},
    }
    assert running.run_id in plan.decisions[busy, "routing"].detail
    assert "has no project" in plan.decisions[nowhere, "routing"].detail
    assert "min_samples_for_optimization" in plan.decisions[broken, WHOLE_TENANT].detail
    text = summary(plan)
    assert all(name in text for name in (few, off, fresh, broken, nowhere, busy))


def test_an_outcome_is_read_back_from_the_event_log(instance: dg.DagsterInstance, tenant: str) -> None:
    end = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    materialize(instance, tenant, "routing", traces=7, end=end - HOUR)
    materialize(instance, tenant, "routing", traces=9, end=end)
    materialize(instance, f"{tenant}2", "routing", traces=1, end=end)
    attempts = read_attempts(instance, MODULES, failures_since=end)
    outcomes = read_outcomes(instance, attempts)
    assert outcomes[tenant, "routing"].decisions == 9
    assert outcomes[tenant, "routing"].window_end == end
    assert outcomes[f"{tenant}2", "routing"].decisions == 1
    written = attempts[tenant, "routing"].outcome_at
    assert written is not None
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)


def test_a_materialization_reported_by_hand_is_an_attempt_without_an_outcome(
    instance: dg.DagsterInstance, tenant: str
) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization("routing", partition=tenant))
    attempts = read_attempts(instance, MODULES, failures_since=datetime.now(UTC) - HOUR)
    assert attempts[tenant, "routing"].outcome_at
    assert read_outcomes(instance, attempts) == {}


def test_failures_back_off_and_a_later_outcome_ends_that(
    store: TenantConfigStore, instance: dg.DagsterInstance, tenant: str, planned: Callable[[], Plan]
) -> None:
    configure(store, tenant)
    failed_run(instance, tenant, MODULES)
    failed_run(instance, tenant, ["routing"])
    plan = planned()
    assert reasons(plan) == {(tenant, module): Reason.BACKING_OFF for module in MODULES}
    assert plan.decisions[tenant, "modality"].detail.startswith("1 failed in a row")
    assert plan.decisions[tenant, "routing"].detail.startswith("2 failed in a row")
    materialize(instance, tenant, "routing", traces=1, end=datetime.now(UTC))
    assert reasons(planned())[tenant, "routing"] is Reason.NOT_DUE


def test_a_run_that_is_killed_is_tried_again_as_the_retry_policy_says_and_reads_the_same_traces(
    store: TenantConfigStore, instance: dg.DagsterInstance, phoenix: Phoenix, tenant: str, planned: Callable[..., Plan]
) -> None:
    retry = {"max_retries": 2, "delay_seconds": 20}
    configure(store, tenant, min_samples_for_optimization=5, retry=retry)
    send_traffic(phoenix, tenant, requests(10, TrafficProfile(reviewed=0)))
    read = datetime.now(UTC).replace(microsecond=0)
    waits, first, runs = [], "", set()
    for _ in range(3):
        tags = {WINDOW_END_TAG: read.isoformat()} | ({ATTEMPT_TAG: first} if first else {})
        run_id = lost_run(instance, tenant, MODULES, tags)
        first = first or run_id
        decision = planned().decisions[tenant, "routing"]
        assert decision.reason is Reason.BACKING_OFF
        assert "the last was lost with its process" in decision.detail
        assert decision.until
        failed_at = planned().attempts[tenant, "routing"].last_failure_at
        assert failed_at
        waits.append(round((decision.until - failed_at).total_seconds()))
        due = planned(decision.until)
        (request,) = run_requests(due, list(due.due()))
        again = len(waits) <= 2
        assert (request.tags[WINDOW_END_TAG] == read.isoformat()) is again
        assert request.tags.get(ATTEMPT_TAG) == (first if again else None)
        runs.add(request.run_key)
    assert waits[:2] == [20, 60]
    assert 3600 <= waits[2] <= 3960  # the interval and its jitter, as after any failure
    assert len(runs) == 3


def test_a_tag_that_means_nothing_is_no_reason_to_decide_nothing(
    store: TenantConfigStore, instance: dg.DagsterInstance, tenant: str, planned: Callable[..., Plan]
) -> None:
    configure(store, tenant)
    lost_run(instance, tenant, MODULES, {WINDOW_END_TAG: "tomorrow"})
    assert reasons(planned()) == {(tenant, module): Reason.BACKING_OFF for module in MODULES}


def test_a_module_that_succeeded_in_a_failed_run_does_not_back_off(instance: dg.DagsterInstance, tenant: str) -> None:
    run = create_run_for_test(
        instance,
        tags={"dagster/partition": tenant},
        asset_selection=frozenset(dg.AssetKey(module) for module in MODULES),
    )
    materialize(instance, tenant, "modality", traces=1, end=datetime.now(UTC))
    instance.report_run_failed(run)
    attempts = read_attempts(instance, MODULES, failures_since=datetime.now(UTC) - HOUR)
    assert attempts[tenant, "modality"].failures == 0
    assert attempts[tenant, "routing"].failures == 1


def test_moments_that_a_wrong_clock_told_hold_nobody_back(instance: dg.DagsterInstance, tenant: str) -> None:
    ahead = datetime.now(UTC) + timedelta(days=2)
    materialization = dg.AssetMaterialization("routing", partition=tenant)
    run = create_run_for_test(
        instance, tags={"dagster/partition": tenant}, asset_selection=frozenset([dg.AssetKey("routing")])
    )
    event = dg.DagsterEvent(
        DagsterEventType.ASSET_MATERIALIZATION.value,
        run.job_name,
        event_specific_data=StepMaterializationData(materialization),
    )
    instance.handle_new_event(
        dg.EventLogEntry(None, "debug", "", run.run_id, ahead.timestamp(), job_name=run.job_name, dagster_event=event)
    )
    failed_run(instance, tenant, ["routing"])
    attempts = read_attempts(instance, MODULES, failures_since=datetime.now(UTC) - HOUR)[tenant, "routing"]
    assert attempts.outcome_id
    assert attempts.outcome_at is None
    assert attempts.failures == 1


def test_a_tenant_that_fails_for_days_is_tried_at_the_longest_wait_only(
    instance: dg.DagsterInstance, tenant: str
) -> None:
    """Failures are looked up far enough back that the wait does not start anew."""
    config = RoutingConfigUnified.model_validate(
        {"tenant_id": tenant, "optimization_interval_seconds": 60, "agents": [{"name": "a"}, {"name": "b"}]}
    )
    horizon = failure_horizon(timedelta(seconds=60), MAX_BACKOFF)
    failed: list[datetime] = []
    now = start = datetime(2026, 1, 1, tzinfo=UTC)
    while now < start + timedelta(days=9):
        seen = [moment for moment in failed if moment > now - horizon]
        tried = Attempts(failures=len(seen), last_failure_at=seen[-1] if seen else None)
        answer = decide(config, get_module("routing"), tried, Evidence(500), now=now)
        assert isinstance(answer, ScheduleDecision)
        if answer.launch:
            failed.append(now)
        now = answer.until or now + timedelta(minutes=1)
    late = [moment for moment in failed if moment > start + timedelta(days=5)]
    assert len(late) <= 4 * 4 + 1


def test_runs_of_other_pipelines_are_none_of_ours(instance: dg.DagsterInstance, tenant: str) -> None:
    failed_run(instance, tenant, [])
    failed_run(instance, tenant, ["billing"])
    create_run_for_test(instance, tags={"dagster/partition": tenant}, status=dg.DagsterRunStatus.STARTED)
    assert read_attempts(instance, MODULES, failures_since=datetime.now(UTC) - HOUR) == {}


def test_the_run_key_changes_with_every_attempt_and_every_hour_and_with_nothing_else(
    store: TenantConfigStore, instance: dg.DagsterInstance, tenant: str, planned: Callable[[], Plan]
) -> None:
    def key(minutes: int) -> str:
        return replace(planned(), window_end=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)).run_key(
            tenant
        )

    configure(store, tenant)
    configure(store, f"{tenant}2")
    first = key(0)
    materialize(instance, f"{tenant}2", "routing", traces=1, end=datetime.now(UTC))
    assert key(59) == first
    failed_run(instance, tenant, MODULES)
    failed = key(0)
    materialize(instance, tenant, "routing", traces=1, end=datetime.now(UTC))
    promoted = key(0)
    assert len({first, failed, promoted}) == 3
    instance.wipe_assets([dg.AssetKey("routing")])
    assert key(59) == failed
    assert key(60) not in {first, failed, promoted}


def test_the_longest_waiting_tenant_comes_first(
    store: TenantConfigStore,
    phoenix: Phoenix,
    tenant: str,
    instance: dg.DagsterInstance,
    planned: Callable[..., Plan],
) -> None:
    waiting, waited_more, never = f"{tenant}-b", f"{tenant}-a", f"{tenant}-c"
    for name in (waited_more, waiting, never):
        send_traffic(phoenix, name, requests(5, TrafficProfile(reviewed=0)))
        configure(
            store,
            name,
            min_samples_for_optimization=2,
            optimization_interval_seconds=1 if name == waited_more else 3,
            modules={"routing": {}},
        )
    for name in (waited_more, waiting):
        materialize(instance, name, "routing", traces=1, end=datetime.now(UTC) - 2 * HOUR)
    later = datetime.now(UTC) + timedelta(seconds=10)
    assert list(planned(later).due()) == [never, waited_more, waiting]


def test_another_language_model_alone_makes_a_module_due(
    store: TenantConfigStore, instance: dg.DagsterInstance, phoenix: Phoenix, tenant: str
) -> None:
    configure(store, tenant, optimization_interval_seconds=1)
    for module, models in (("routing", ["openai/now"]), ("modality", ["openai/before"])):
        materialize(instance, tenant, module, traces=1, end=datetime.now(UTC) - HOUR, models=models)
    now, settings = datetime.now(UTC) + timedelta(seconds=10), SETTINGS.model_copy(update={"lm": "openai/now"})
    plan = plan_tenants(store.current(), instance, phoenix, now=now, settings=settings)
    assert plan.due() == {tenant: ["modality"]}
    changed = "the language models changed from openai/before to openai/now"
    assert plan.decisions[tenant, "modality"].detail == changed
    configure(store, tenant, optimization_interval_seconds=1, candidate_lms=[{"model": "openai/candidate"}])
    plan = plan_tenants(store.current(), instance, phoenix, now=now, settings=settings)
    assert plan.due() == {tenant: ["modality", "routing"]}


def test_an_uninstalled_module_is_an_error_of_that_module_alone(
    store: TenantConfigStore, tenant: str, planned: Callable[[], Plan]
) -> None:
    configure(store, tenant, modules={"routing": {}, "ruting": {}})
    plan = planned()
    assert plan.decisions[tenant, "ruting"].reason is Reason.ERROR
    assert "did you mean 'routing'" in plan.decisions[tenant, "ruting"].detail
    assert reasons(plan)[tenant, "routing"] is Reason.TOO_FEW_TRACES


def test_when_phoenix_is_down_only_what_it_decides_is_an_error(
    store: TenantConfigStore, instance: dg.DagsterInstance, tenant: str
) -> None:
    configure(store, tenant)
    configure(store, f"{tenant}-off", enable_auto_optimization=False)
    plan = plan_tenants(
        store.current(),
        instance,
        Phoenix("http://127.0.0.1:9"),
        now=datetime.now(UTC),
        settings=SETTINGS,
    )
    assert reasons(plan)[tenant, "routing"] is Reason.ERROR
    assert "http://127.0.0.1:9" in plan.decisions[tenant, "routing"].detail
    assert reasons(plan)[f"{tenant}-off", "routing"] is Reason.DISABLED


def test_in_quiet_hours_nothing_is_launched_and_phoenix_is_not_asked(
    store: TenantConfigStore, instance: dg.DagsterInstance, tenant: str
) -> None:
    configure(store, tenant, quiet_hours=[{"start": "00:00", "end": "24:00"}])
    plan = plan_tenants(
        store.current(), instance, Phoenix("http://127.0.0.1:9"), now=datetime.now(UTC), settings=SETTINGS
    )
    assert reasons(plan) == {(tenant, module): Reason.QUIET_HOURS for module in MODULES}


def test_a_daily_budget_counts_outcomes_and_failed_attempts_of_the_day_and_nobody_elses(
    store: TenantConfigStore, instance: dg.DagsterInstance, tenant: str, planned: Callable[[], Plan]
) -> None:
    configure(store, tenant, daily_budget={"max_lm_calls": 100})
    configure(store, f"{tenant}2", daily_budget={"max_tokens": 5000})
    spent = {"lm_calls": 60, "lm_tokens": 4000}
    instance.report_runless_asset_event(dg.AssetMaterialization("workflow", partition=tenant, metadata=spent))
    instance.report_runless_asset_event(dg.AssetMaterialization("workflow", partition=f"{tenant}2", metadata=spent))
    assert Reason.BUDGET_EXHAUSTED not in reasons(planned()).values()
    report_usage(instance, tenant, "cross_modal", LMUsage(50, 900), run_id="r", reason="the model is down")
    plan = planned()
    assert reasons(plan)[tenant, "routing"] is Reason.BUDGET_EXHAUSTED
    assert plan.decisions[tenant, "routing"].detail.startswith("110 of 100 LM calls a day are spent (this tenant)")
    assert reasons(plan)[f"{tenant}2", "routing"] is Reason.TOO_FEW_TRACES
    assert read_usage(instance, ["workflow", "cross_modal"], since=datetime.now(UTC) + HOUR) == {}


@pytest.mark.parametrize("settling", [timedelta(0), timedelta(hours=1)], ids=["settled", "young"])
def test_what_is_read_on_is_counted_once(
    instance: dg.DagsterInstance, tenant: str, settling: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoopt_pipeline.run_history.lm_usage.EVENT_LOG_LAG", settling)
    since = datetime.now(UTC) - HOUR
    for attempts in range(1, 4):
        outcome = dg.AssetMaterialization("routing", partition=tenant, metadata={"lm_calls": 5})
        instance.report_runless_asset_event(outcome)
        report_usage(instance, tenant, "modality", LMUsage(2, 0), run_id="x", reason="failed")
        for _ in range(2):
            assert read_usage(instance, MODULES, since=since) == {tenant: LMUsage(7 * attempts, 0)}
    assert read_usage(instance, MODULES, since=datetime.now(UTC)) == {}


def test_a_budget_of_all_tenants_holds_each_of_them(
    store: TenantConfigStore, instance: dg.DagsterInstance, tenant: str
) -> None:
    for name in (tenant, f"{tenant}2"):
        configure(store, name)
        report_usage(instance, name, "routing", LMUsage(5, 600), run_id="r", reason="")
    settings = Settings(settling_seconds=0, daily_lm_tokens=1200)
    plan = plan_tenants(
        store.current(), instance, Phoenix("http://127.0.0.1:9"), now=datetime.now(UTC), settings=settings
    )
    assert set(reasons(plan).values()) == {Reason.BUDGET_EXHAUSTED}
    assert "1200 of 1200 tokens a day are spent (all tenants together)" in plan.decisions[tenant, "routing"].detail


def test_a_run_may_take_as_long_as_its_tenant_says(
    store: TenantConfigStore, phoenix: Phoenix, tenant: str, planned: Callable[[], Plan]
) -> None:
    configure(store, tenant, min_samples_for_optimization=2, max_run_seconds=900)
    send_traffic(phoenix, tenant, requests(5, TrafficProfile(reviewed=0)))
    plan = planned()
    (request,) = run_requests(plan, list(plan.due()))
    assert request.tags["dagster/max_runtime"] == "900"


@pytest.fixture
def sensors(tmp_path: Path, phoenix: Phoenix, monkeypatch: pytest.MonkeyPatch) -> dict[str, dg.SensorDefinition]:
    monkeypatch.setenv("AUTOOPT_HOME", str(tmp_path))
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    from autoopt_pipeline.orchestration.assets import build_module_assets
    from autoopt_pipeline.orchestration.sensors.optimization import build_sensors

    keys = [asset.key for asset in build_module_assets()]
    return {sensor.name: sensor for sensor in build_sensors(Settings(), dg.AssetSelection.assets(*keys))}


def tick(sensor: dg.SensorDefinition, instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    result = sensor(dg.build_sensor_context(instance=instance, resources={"services": Services()}))
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def test_the_sensor_plans_only_registered_tenants(
    store: TenantConfigStore,
    phoenix: Phoenix,
    tenant: str,
    instance: dg.DagsterInstance,
    sensors: dict[str, dg.SensorDefinition],
) -> None:
    configure(store, tenant, min_samples_for_optimization=2)
    send_traffic(phoenix, tenant, requests(5, TrafficProfile(reviewed=0)))
    sensor = sensors["auto_optimization_sensor"]
    assert isinstance(tick(sensor, instance), dg.SkipReason)
    register_tenant(instance, tenant)
    result = tick(sensor, instance)
    assert isinstance(result, dg.SensorResult)
    assert [request.partition_key for request in result.run_requests or ()] == [tenant]


def test_launches_are_capped_and_what_is_held_back_is_said(
    store: TenantConfigStore,
    phoenix: Phoenix,
    tenant: str,
    instance: dg.DagsterInstance,
    sensors: dict[str, dg.SensorDefinition],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTOOPT_MAX_LAUNCHES_PER_TICK", "2")
    names = [f"{tenant}-{i}" for i in range(4)]
    for name in names:
        configure(store, name, min_samples_for_optimization=2)
        send_traffic(phoenix, name, requests(5, TrafficProfile(reviewed=0)))
    for name in names[:3]:
        register_tenant(instance, name)
    said: list[str] = []
    monkeypatch.setattr(logging.Logger, "info", lambda self, message, *args: said.append(message))
    result = tick(sensors["auto_optimization_sensor"], instance)
    assert isinstance(result, dg.SensorResult)
    assert [request.partition_key for request in result.run_requests or ()] == names[:2]
    assert any(line.startswith(f"{names[2]}: held back, for a tick launches at most 2") for line in said)
    assert any(line.startswith(f"{names[3]}: held back until it is a partition") for line in said)


def test_a_look_without_time_for_all_asks_about_the_longest_waiting_and_the_next_one_goes_on(
    store: TenantConfigStore,
    instance: dg.DagsterInstance,
    phoenix: Phoenix,
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "_TENANTS_AT_ONCE", 2)
    newest, older, oldest, never, other = (f"{tenant}-{name}" for name in "abcde")
    for name in (oldest, older, newest):
        materialize(instance, name, "routing", traces=0, end=datetime.now(UTC))
        materialize(instance, name, "modality", traces=0, end=datetime.now(UTC))
    for name in (newest, older, oldest, never, other):
        configure(store, name)
    now, after = datetime.now(UTC) + 2 * HOUR, None
    settings = SETTINGS.model_copy(update={"schedule_jitter": 0})  # which would spread them by their ids
    asked: list[set[str]] = []
    for _ in range(3):
        options = PlanOptions(seconds=0, after=after)
        plan = plan_tenants(store.current(), instance, phoenix, now=now, settings=settings, options=options)
        after = plan.reached
        found = {key: reason for key, reason in reasons(plan).items() if reason is not Reason.DEFERRED}
        assert set(found.values()) == {Reason.TOO_FEW_TRACES}
        asked.append({name for name, _ in found})
    assert asked == [{never, other}, {oldest, older}, {newest, never}]


@given(st.lists(st.tuples(st.floats(0, 2e9), st.text(min_size=1))), st.integers(1, 5))
def test_in_a_round_of_looks_everybody_has_a_turn(turns: list[QueuePosition], at_once: int) -> None:
    turns, after, reached = list(dict.fromkeys(turns)), None, set()
    for _ in range(-(-len(turns) // at_once)):
        some = queue_order(turns, after)[:at_once]
        reached |= {*some}
        after = some[-1]
    assert reached == {*turns}


def test_whoever_is_held_back_is_launched_before_those_who_have_waited_less(
    store: TenantConfigStore,
    phoenix: Phoenix,
    tenant: str,
    instance: dg.DagsterInstance,
    sensors: dict[str, dg.SensorDefinition],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTOOPT_MAX_LAUNCHES_PER_TICK", "1")
    monkeypatch.setattr("autoopt_pipeline.orchestration.sensors.optimization._SECONDS_PER_TICK", 0)
    monkeypatch.setattr(planner, "_TENANTS_AT_ONCE", 2)
    names = [f"{tenant}-{i}" for i in range(4)]
    for name in names:
        configure(store, name, min_samples_for_optimization=2)
        send_traffic(phoenix, name, requests(5, TrafficProfile(reviewed=0)))
        register_tenant(instance, name)
    launched, cursor = list[str | None](), None
    for _ in names:
        context = dg.build_sensor_context(instance=instance, resources={"services": Services()}, cursor=cursor)
        result = sensors["auto_optimization_sensor"](context)
        assert isinstance(result, dg.SensorResult)
        cursor = context.cursor
        for request in result.run_requests or ():
            launched.append(request.partition_key)
            create_run_for_test(
                instance,
                tags={"dagster/partition": str(request.partition_key)},
                status=dg.DagsterRunStatus.STARTED,
                asset_selection=frozenset(request.asset_selection or ()),
            )
    assert launched == names


def test_an_error_is_a_failed_tick_and_never_a_skip(
    store: TenantConfigStore, tenant: str, instance: dg.DagsterInstance, sensors: dict[str, dg.SensorDefinition]
) -> None:
    store.write(tenant, {"tenant_id": tenant, "nonsense": 1})
    register_tenant(instance, tenant)
    with pytest.raises(PlanningFailed, match=f"{tenant}.*nonsense"):
        tick(sensors["auto_optimization_sensor"], instance)


def test_one_broken_tenant_does_not_keep_another_from_its_run(
    store: TenantConfigStore,
    phoenix: Phoenix,
    tenant: str,
    instance: dg.DagsterInstance,
    sensors: dict[str, dg.SensorDefinition],
) -> None:
    store.write(f"{tenant}-broken", {"nonsense": 1})
    configure(store, tenant, min_samples_for_optimization=2)
    send_traffic(phoenix, tenant, requests(5, TrafficProfile(reviewed=0)))
    for name in (tenant, f"{tenant}-broken"):
        register_tenant(instance, name)
    result = tick(sensors["auto_optimization_sensor"], instance)
    assert isinstance(result, dg.SensorResult)
    assert [request.partition_key for request in result.run_requests or ()] == [tenant]


def test_a_store_that_is_down_fails_the_tick(
    instance: dg.DagsterInstance, sensors: dict[str, dg.SensorDefinition], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOOPT_CONFIG_STORE_URL", "redis://127.0.0.1:1/0")
    register_tenant(instance, "acme")
    for sensor in (sensors["tenant_partitions_sensor"], sensors["auto_optimization_sensor"]):
        with pytest.raises(Exception, match=r"redis://127.0.0.1:1/0.*AUTOOPT_CONFIG_STORE_URL"):
            tick(sensor, instance)
    assert registered_tenants(instance) == {"acme"}


def test_partitions_follow_the_configured_tenants() -> None:
    assert partition_changes({"a", "b"}, {"b"}, set(), set()) == (["a"], [], [])
    assert partition_changes({"a"}, {"a", "b"}, {"b"}, set()) == ([], ["b"], [])
    assert partition_changes({"a"}, {"a"}, set(), set()) == ([], [], [])


def test_a_partition_with_an_unfinished_run_is_removed_later() -> None:
    assert partition_changes({"a"}, {"a", "b"}, {"b"}, {"b"}) == ([], [], ["b"])


def test_tenants_that_the_store_has_lost_keep_their_partitions_and_fail_the_tick(
    store: TenantConfigStore, instance: dg.DagsterInstance, sensors: dict[str, dg.SensorDefinition]
) -> None:
    configure(store, "stays")
    for tenant in ("stays", "lost"):
        register_tenant(instance, tenant)
    with pytest.raises(Exception, match="1 tenants that nobody removed have no configuration any more, first lost"):
        tick(sensors["tenant_partitions_sensor"], instance)
    assert registered_tenants(instance) == {"stays", "lost"}


def test_the_partition_sensor_adds_and_removes(
    store: TenantConfigStore,
    tenant: str,
    tmp_path: Path,
    instance: dg.DagsterInstance,
    sensors: dict[str, dg.SensorDefinition],
) -> None:
    configure(store, tenant)
    configure(store, "gone")
    store.write("gone", None)
    with sqlite3.connect(tmp_path / "config.db") as db:  # an id that only somebody else could have written
        db.execute("INSERT INTO tenant_configs VALUES ('a,b', 1, 'yesterday', '{}', 'ada', NULL)")
    register_tenant(instance, "gone")
    result = tick(sensors["tenant_partitions_sensor"], instance)
    assert isinstance(result, dg.SensorResult)
    assert result.dynamic_partitions_requests
    add, delete = result.dynamic_partitions_requests
    assert (list(add.partition_keys), list(delete.partition_keys)) == ([tenant], ["gone"])
