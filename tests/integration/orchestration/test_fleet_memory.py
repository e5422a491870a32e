"""Plans that remember earlier ones, on a real Dagster instance: they decide the same, and ask Phoenix less."""

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from opentelemetry.sdk.trace import TracerProvider

from autoopt_pipeline.definitions import defs
from autoopt_pipeline.errors import PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.orchestration import planner
from autoopt_pipeline.orchestration.planner import Plan, PlanOptions, plan_tenants
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.orchestration.sensors import optimization
from autoopt_pipeline.registry.quality_records import QualityFall
from autoopt_pipeline.run_history.ticks import TickReport
from autoopt_pipeline.scheduling.conditions import Reason
from autoopt_pipeline.scheduling.fleet_memory import FleetMemory
from autoopt_pipeline.serving import trace_to_phoenix
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.span_contract import (
    COUNTS_PROJECT,
    COUNTS_SPAN,
    MODULE,
    ROUTING_SPAN,
    TENANT_ID,
    TENANTS_PER_COUNTS_SPAN,
    project_name,
)
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import CountRequest, Phoenix, Project
from autoopt_pipeline.traces.decision_counts import read_decision_counts
from tests.support.tenant_history import MODULES, configure, failed_run, materialize

SETTINGS = Settings(settling_seconds=0, schedule_jitter=0)
BEGAN = datetime.now(UTC)
TENANTS = [f"tenant-{number}" for number in range(12)]


class CountedPhoenix(Phoenix):
    """Has so many spans of each tenant, all of them new, and records about whom it was asked."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self.spans: dict[str, int] = defaultdict(int)
        self.asked: list[str] = []
        self.told: dict[str, object] = {}

    def attributes_of(
        self, project: str, span_name: str, *, start: datetime, end: datetime
    ) -> dict[str, dict[str, Any]]:
        """What applications told: it stays within every range."""
        assert (project, span_name) == (COUNTS_PROJECT, COUNTS_SPAN)
        assert start < end
        return {span_id: {"autoopt": {"decision_counts": told}} for span_id, told in self.told.items()}

    def projects(self, names: Sequence[str]) -> dict[str, Project]:
        self.asked += dict.fromkeys(names)
        ever = datetime.max.replace(tzinfo=UTC)
        return {name: Project(name, name, datetime.now(UTC), ever, {}) for name in names}

    def count(self, requests: Sequence[CountRequest]) -> dict[CountRequest, int]:
        return {request: self.spans[request.project_id] for request in requests}

    def asked_about(self) -> set[str]:
        """The tenants since the last call."""
        asked, self.asked = self.asked, []
        return {name.removesuffix("-cogniverse-routing") for name in asked}


@pytest.fixture
def store(tmp_path: Path) -> TenantConfigStore:
    return open_config_store(f"sqlite:///{tmp_path / 'config.db'}")


@pytest.fixture
def counted() -> CountedPhoenix:
    return CountedPhoenix()


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_what_is_remembered_is_what_is_decided_anew(
    store: TenantConfigStore, instance: dg.DagsterInstance, counted: CountedPhoenix, seed: int
) -> None:
    random, memory, now = Random(seed), FleetMemory(), datetime.now(UTC)
    falls: dict[tuple[str, str], QualityFall] = {}
    runs: dict[str, dg.DagsterRun] = {}
    for tenant in TENANTS:
        configure(store, tenant)

    def change_configuration(tenant: str) -> None:
        fields = random.choice(
            [
                {"optimization_interval_seconds": random.choice([600, 7200])},
                {"enable_auto_optimization": False},
                {"quiet_hours": [{"start": "00:00", "end": random.choice(["06:00", "12:00", "24:00"])}]},
                {"daily_budget": {"max_lm_calls": random.choice([0, 5])}},
                {"min_samples_for_optimization": random.choice([1, 20])},
                {
                    "modules": {
                        "routing": {"retrain_after": (now + timedelta(hours=random.choice([-1, 2]))).isoformat()}
                    }
                },
                {"modules": {"routing": {"mode": "off"}, "no_such_module": {}}},
            ]
        )
        configure(store, tenant, **fields)

    def fall(tenant: str) -> None:
        at = now + timedelta(minutes=random.choice([-5, 90]))
        falls[tenant, "routing"] = QualityFall(
            what="quality", at=at, since=at, before=0.9, after=0.5, outcomes=9, cause="drift"
        )

    def begin_or_end_a_run(tenant: str) -> None:
        if tenant in runs:
            instance.report_run_canceled(runs.pop(tenant))
        else:
            runs[tenant] = create_run_for_test(
                instance,
                tags={"dagster/partition": tenant},
                status=dg.DagsterRunStatus.STARTED,
                asset_selection=frozenset({dg.AssetKey("routing")}),
            )

    def receive_spans(tenant: str) -> None:
        counted.spans[project_name(tenant)] += random.choice([5, 120])

    changes: list[Callable[[str], object]] = [
        change_configuration,
        fall,
        begin_or_end_a_run,
        receive_spans,
        lambda tenant: materialize(instance, tenant, random.choice(MODULES), traces=5, end=now),
        lambda tenant: failed_run(instance, tenant, [random.choice(MODULES)]),
        lambda tenant: store.write(tenant, random.choice([None, {"tenant_id": tenant, "mode": "maybe"}])),
        lambda tenant: falls.pop((tenant, "routing"), None),
    ]
    seen: set[str] = set()
    for _ in range(40):
        for tenant in random.sample(TENANTS, random.choice([0, 1, 3])):
            random.choice(changes)(tenant)
        now += timedelta(minutes=random.choice([0, 1, 30, 300]))
        with_memory = plan(store, instance, counted, now, falls, memory)
        anew = plan(store, instance, counted, now, falls, None)
        assert with_memory.counts() == anew.counts()
        assert launches(with_memory) == launches(anew)
        assert with_memory.errors() == anew.errors()
        assert [with_memory.run_key(tenant) for tenant in with_memory.due()] == [
            anew.run_key(tenant) for tenant in anew.due()
        ]
        assert all(anew.decisions[key].reason == each.reason for key, each in with_memory.decisions.items())
        seen |= set(anew.counts())
    assert len(seen) >= 6


def plan(
    store: TenantConfigStore,
    instance: dg.DagsterInstance,
    phoenix: Phoenix,
    now: datetime,
    falls: dict[tuple[str, str], QualityFall],
    memory: FleetMemory | None,
) -> Plan:
    options = PlanOptions(seconds=60, memory=memory)
    return plan_tenants(store.current(), instance, phoenix, now=now, settings=SETTINGS, options=options, falls=falls)


def launches(plan: Plan) -> dict[tuple[str, str], tuple[Reason, str]]:
    return {key: (each.reason, each.detail) for key, each in plan.decisions.items() if each.launch}


def test_what_is_not_due_is_not_decided_again(
    store: TenantConfigStore, instance: dg.DagsterInstance, counted: CountedPhoenix, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, now, parsed = FleetMemory(), datetime.now(UTC), []
    for tenant in TENANTS:
        configure(store, tenant)
        for module in MODULES:
            materialize(instance, tenant, module, traces=5, end=now)
    read = planner._parse_configs
    monkeypatch.setattr(planner, "_parse_configs", lambda stored, names: read(stored, parsed.append([*names]) or names))
    assert plan(store, instance, counted, now, {}, memory).counts()["not_due"] == 2 * len(TENANTS)
    configure(store, TENANTS[3], optimization_interval_seconds=7200)
    again = plan(store, instance, counted, now, {}, memory)
    assert {tenant for tenant, _ in again.decisions} == {TENANTS[3]}
    assert again.counts()["not_due"] == 2 * len(TENANTS)
    assert [tenant for names in parsed for tenant in names] == [*sorted(TENANTS), TENANTS[3]]
    over = plan(store, instance, counted, now + timedelta(minutes=61), {}, memory)
    assert {tenant for tenant, _ in over.decisions} == set(TENANTS) - {TENANTS[3]}


def test_a_large_fleet_that_nobody_knows_yet_is_decided_in_several_ticks(
    store: TenantConfigStore, instance: dg.DagsterInstance, counted: CountedPhoenix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_DECIDED_AT_ONCE", 5)
    memory, now = FleetMemory(), datetime.now(UTC)
    store.write("broken", {"tenant_id": "broken", "mode": "maybe"})
    for tenant in TENANTS:
        configure(store, tenant, enable_auto_optimization=False)
    plans = [plan(store, instance, counted, now, {}, memory) for _ in range(4)]
    unknown = [each.counts().get("deferred", 0) for each in plans]
    assert unknown[:3] == [8 * 5, 4 * 5, 0]
    assert [len(each.errors()) for each in plans] == [1, 0, 1, 1]
    assert plans[3].counts() == {"disabled": 12 * 5, "error": 1}


def test_a_clock_that_is_set_back_and_other_settings_make_everything_new(
    store: TenantConfigStore, instance: dg.DagsterInstance, counted: CountedPhoenix
) -> None:
    memory, now = FleetMemory(), datetime.now(UTC)
    configure(store, "acme", enable_auto_optimization=False)
    plan(store, instance, counted, now, {}, memory)
    assert plan(store, instance, counted, now, {}, memory).decisions == {}
    assert plan(store, instance, counted, now - timedelta(seconds=1), {}, memory).decisions
    others = PlanOptions(memory=memory)
    settings = SETTINGS.model_copy(update={"schedule_jitter": 0.5})
    assert plan_tenants(store.current(), instance, counted, now=now, settings=settings, options=others).decisions


def told(**decisions: int) -> str:
    return json.dumps({tenant.replace("_", "-"): {ROUTING_SPAN: count} for tenant, count in decisions.items()})


def test_phoenix_is_asked_about_whoever_tells_of_enough_decisions_and_the_others_once_an_hour(
    store: TenantConfigStore, instance: dg.DagsterInstance, counted: CountedPhoenix
) -> None:
    memory, now = FleetMemory(), datetime.now(UTC)
    for tenant in ("idle", "busy", "silent"):
        configure(store, tenant, min_samples_for_optimization=100)

    def asked_after(minutes: float) -> set[str]:
        nonlocal now
        now += timedelta(minutes=minutes)
        found = plan(store, instance, counted, now, {}, memory)
        assert found.counts().keys() <= {"disabled", "too_few_traces", "due"}
        assert sum(found.counts().values()) == 15
        return counted.asked_about()

    counted.spans |= {project_name("busy"): 30}
    counted.told = {"1": told(idle=2, busy=30, stranger=500)}
    assert asked_after(0) == {"idle", "busy", "silent"}  # nobody was asked about before
    assert asked_after(1) == {"silent"}  # which may not count its decisions
    counted.told |= {"2": told(idle=1, busy=69)}
    assert asked_after(1) == {"silent"}
    counted.told |= {"3": told(busy=1)}
    assert asked_after(1) == {"busy", "silent"}  # 70 were missing
    counted.spans |= {project_name("busy"): 99}  # its application lost two counts with a process
    assert asked_after(1) == {"silent"}
    assert asked_after(59) == {"idle", "busy", "silent"}


def test_who_is_due_stays_first_until_its_run_begins_and_is_asked_about_anew_after_it(
    store: TenantConfigStore, instance: dg.DagsterInstance, counted: CountedPhoenix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_TENANTS_AT_ONCE", 1)
    memory, now = FleetMemory(), datetime.now(UTC)
    for tenant in ("a", "b", "c"):
        configure(store, tenant, min_samples_for_optimization=10)
    counted.told = {"1": told(a=1, b=1, c=1)}
    plan(store, instance, counted, now, {}, memory)
    counted.asked.clear()
    counted.spans |= {project_name("c"): 10}
    counted.told |= {"2": told(c=10)}
    for minute in (1, 2):
        found = plan(store, instance, counted, now + timedelta(minutes=minute), {}, memory)
        assert found.due() == {"c": MODULES}
        assert counted.asked_about() == {"c"}
    for module in MODULES:
        materialize(instance, "c", module, traces=10, end=now)
    assert plan(store, instance, counted, now + timedelta(minutes=3), {}, memory).due() == {}
    assert counted.asked_about() == set()
    plan(store, instance, counted, now + timedelta(minutes=62), {}, memory)
    assert counted.asked_about() == {"a", "b", "c"}


def test_damaged_numbers_are_skipped_with_one_line_and_start_nothing(
    store: TenantConfigStore, instance: dg.DagsterInstance, counted: CountedPhoenix, caplog: pytest.LogCaptureFixture
) -> None:
    memory, now = FleetMemory(), datetime.now(UTC)
    configure(store, "acme", min_samples_for_optimization=100)
    large = json.dumps({f"t{number}": {ROUTING_SPAN: 1} for number in range(TENANTS_PER_COUNTS_SPAN + 1)})
    damaged = [None, 7, "", "[" * 50_000, "[]", '{"acme": 3}', told(acme=-1), told(acme=10**12), large, "x" * 200_000]
    damaged += ['{"acme": {"cogniverse.routing": true}}', '{"acme": {"cogniverse.routing": "5"}}']
    counted.told = {str(number): text for number, text in enumerate(damaged)} | {"good": told(acme=99)}
    found = plan(store, instance, counted, now, {}, memory)
    assert found.counts() == {"disabled": 3, "too_few_traces": 2}
    (line,) = [record.getMessage() for record in caplog.records if "decisions are skipped" in record.getMessage()]
    assert line.startswith(f"{len(damaged)} of {len(damaged) + 1} counts of decisions are skipped, first of span 0: ")
    counted.told |= {"forged": told(acme=10**9)}
    assert plan(store, instance, counted, now + timedelta(minutes=1), {}, memory).due() == {}


def test_without_phoenix_nothing_that_applications_told_is_lost(
    store: TenantConfigStore, instance: dg.DagsterInstance, counted: CountedPhoenix, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, now, ranges = FleetMemory(), datetime.now(UTC), []
    configure(store, "acme")
    plan(store, instance, counted, now, {}, memory)

    def down(*names: str, start: datetime, end: datetime) -> dict[str, dict[str, Any]]:
        ranges.append((start, end))
        raise PhoenixUnavailable("Phoenix does not answer", "see that it is up")

    with monkeypatch.context() as patched:
        patched.setattr(counted, "attributes_of", down)
        counted.asked.clear()
        failed = plan(store, instance, counted, now + timedelta(minutes=1), {}, memory)
    assert failed.counts() == {"disabled": 3, "error": 2}
    assert isinstance(failed.phoenix_error, PhoenixUnavailable)
    assert counted.asked == []  # the tick has no time to wait for a second answer
    monkeypatch.setattr(counted, "attributes_of", lambda *_, start, end: ranges.append((start, end)) or {})
    plan(store, instance, counted, now + timedelta(minutes=2), {}, memory)
    assert ranges[1][0] == ranges[0][0] < now.replace(microsecond=0)


def test_numbers_that_phoenix_refuses_keep_nobody_from_being_counted(
    store: TenantConfigStore, instance: dg.DagsterInstance, counted: CountedPhoenix, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: str, **__: datetime) -> None:
        raise PhoenixRefused("Phoenix: its answer is not understood", "check its version")

    monkeypatch.setattr(counted, "attributes_of", refusing)
    configure(store, "acme", min_samples_for_optimization=5)
    counted.spans |= {project_name("acme"): 5}
    assert plan(store, instance, counted, datetime.now(UTC), {}, FleetMemory()).due() == {"acme": MODULES}


def test_the_sensor_remembers_a_large_fleet_and_says_how_much_is_as_before(
    configured: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimization, "_FEW_TENANTS", 1)
    store = open_config_store(f"sqlite:///{configured / '.autoopt' / 'config.db'}")
    for tenant in ("a", "b"):
        configure(store, tenant, enable_auto_optimization=False)
    said: list[str] = []
    monkeypatch.setattr(logging.Logger, "info", lambda self, message, *args: said.append(message))
    sensor = defs.resolve_sensor_def("auto_optimization_sensor")
    reports = []
    for _ in range(2):
        said.clear()
        context = dg.build_sensor_context(instance=instance, resources={"services": Services()})
        sensor(context)
        reports.append(TickReport.load(context.cursor))
    assert reports[0] == reports[1]
    assert not any("enable_auto_optimization is false" in line for line in said)
    assert any(line.startswith("10 modules as in earlier ticks") for line in said)


def test_a_fleet_is_told_by_the_serving_library_through_a_real_phoenix(
    store: TenantConfigStore, instance: dg.DagsterInstance, phoenix: Phoenix, tenant: str
) -> None:
    idle, busy = f"{tenant}-idle", f"{tenant}-busy"
    memory, asked, expected = FleetMemory(), list[str](), Counter[str]()
    for name in (idle, busy):
        configure(store, name, min_samples_for_optimization=5)

    def decide_and_plan(**decisions: int) -> Plan:
        provider = TracerProvider()
        trace_to_phoenix(phoenix.endpoint, tracer_provider=provider)
        for name, count in decisions.items():
            attributes = {TENANT_ID: f"{tenant}-{name}", MODULE: "routing", "routing.query": "where is it?"}
            for _ in range(count):
                provider.get_tracer("test").start_span(ROUTING_SPAN, attributes=attributes).end()
        provider.shutdown()
        expected.update({f"{tenant}-{name}": count for name, count in decisions.items()})
        end = time.monotonic() + 30
        while True:
            known, _ = read_decision_counts(phoenix, start=BEGAN, end=datetime.now(UTC), but=())
            if {name: known[name][ROUTING_SPAN] for name in known.keys() & expected.keys()} == expected:
                break
            assert time.monotonic() < end
            time.sleep(0.2)
        asked.clear()
        read = planner.gather_evidence
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                planner,
                "gather_evidence",
                lambda phoenix, wanted, until: (
                    asked.extend(each.tenant_id for each in wanted) or read(phoenix, wanted, until=until)
                ),
            )
            later = datetime.now(UTC) + timedelta(seconds=1)
            return plan(store, instance, phoenix, later, {}, memory)

    first = decide_and_plan(idle=1, busy=1)
    assert set(asked) == {idle, busy}
    assert first.counts() == {"disabled": 6, "too_few_traces": 4}
    second = decide_and_plan(idle=1, busy=4)
    assert set(asked) == {busy}
    assert second.due() == {busy: MODULES}
    assert second.counts() == {"disabled": 6, "due": 2, "too_few_traces": 2}
