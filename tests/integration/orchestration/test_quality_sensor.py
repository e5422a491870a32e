"""The monitor of live quality: an application's traces in a real Phoenix, and the sensor that checks them."""

import json
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import PlayedRequest, PlayedSpan
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.monitoring.alerts.collect import COLLECTORS, AlertSource, start_cursor
from autoopt_pipeline.monitoring.alerts.models import Kind
from autoopt_pipeline.names import QUALITY_SENSOR
from autoopt_pipeline.orchestration.planner import plan_tenants
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.orchestration.run_requests import run_requests
from autoopt_pipeline.orchestration.sensors import quality
from autoopt_pipeline.orchestration.sensors.quality import quality_sensor
from autoopt_pipeline.registry.quality_records import TenantCheck, quality_path, read_checks, read_falls, write_checks
from autoopt_pipeline.registry.replays import ModelReplay, report_replay, reported_replays
from autoopt_pipeline.rollouts.live_quality import load_monitor
from autoopt_pipeline.scheduling.conditions import Reason
from autoopt_pipeline.span_contract import ROUTING_SPAN, NewAnnotation, project_name
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import autoopt
from tests.support.scraped_metrics import exporter, scraped
from tests.support.sensor_daemon import daemon_of
from tests.support.stored_programs import FAST, made_program, store
from tests.support.tenant_history import configure, materialize

NOW = datetime.now(UTC)
AGENTS = ("search_agent", "report_agent")
STEADY = {"search_agent": 0.95, "report_agent": 0.9}
WORSE = {"search_agent": 0.95, "report_agent": 0.3}


def requests(count: int, begin: float, end: float, right: Mapping[str, float], **also: str) -> list[PlayedRequest]:
    """Requests from so many days ago until so many, each with the outcome that the application saw."""
    rng = random.Random(count)
    made = []
    for i in range(count):
        agent = AGENTS[i % 2]
        attributes = {
            "routing.query": f"question number {i}",
            "routing.chosen_agent": agent,
            "routing.confidence": 0.9,
            "routing.success": rng.random() < right[agent],
            **also,
        }
        time = NOW - timedelta(days=begin - (begin - end) * i / count)
        made.append(PlayedRequest(time, 0.1, (PlayedSpan(ROUTING_SPAN, attributes, False, ()),)))
    return made


@pytest.fixture
def check(parts: Connections, instance: dg.DagsterInstance) -> Callable[[], str]:
    def evaluate() -> str:
        context = dg.build_sensor_context(instance=instance, resources={"services": Services()})
        result = quality_sensor(parts.settings)(context)
        assert isinstance(result, dg.SkipReason)
        return result.skip_message or ""

    return evaluate


def due_again(parts: Connections) -> None:
    """Let a day pass."""
    checks = read_checks(parts.files)
    write_checks(parts.files, {tenant: each.model_copy(update={"due": NOW}) for tenant, each in checks.items()})


def observed(instance: dg.DagsterInstance, tenant: str) -> list[dict[str, object]]:
    records = instance.fetch_observations(dg.AssetRecordsFilter(dg.AssetKey("routing"), [tenant]), limit=10).records
    return [
        {name: value.value for name, value in record.asset_observation.metadata.items()}
        for record in records
        if record.asset_observation
    ]


def test_a_fall_is_named_and_alerted_and_makes_the_module_due_once(
    parts: Connections, tenant: str, instance: dg.DagsterInstance, check: Callable[[], str]
) -> None:
    configure(parts.configs, tenant, modules={"routing": {}})
    materialize(instance, tenant, "routing", traces=1, end=NOW)
    source = AlertSource(instance, ["routing"], [], alert_after=3, until=datetime.now(UTC) + timedelta(minutes=5))
    cursor = start_cursor(source)
    send_traffic(parts.phoenix, tenant, [*requests(600, 6, 3, STEADY), *requests(200, 3, 1, WORSE)])
    assert check() == "1 tenants checked, 1 modules fell, 0 tenants deferred"
    fall = read_falls(parts.files)[tenant, "routing"]
    assert (fall.what, fall.cause, fall.group) == ("quality", "one class", "report_agent")
    assert abs(fall.since - (NOW - timedelta(days=3))) < timedelta(days=0.5)
    assert fall.before == pytest.approx(0.925, abs=0.03)
    levels = f"from {100 * fall.before:.0f} to {100 * fall.after:.0f} %"
    said = f"quality fell {levels} since {fall.since:%Y-%m-%d}: one class (report_agent)"

    def reason() -> Reason:
        plan = plan_tenants(
            parts.configs.current(),
            instance,
            parts.phoenix,
            now=datetime.now(UTC),
            settings=parts.settings,
            falls=read_falls(parts.files),
        )
        decision = plan.decisions[tenant, "routing"]
        assert bool(run_requests(plan, list(plan.due()))) == decision.launch
        return decision.reason

    assert reason() is Reason.QUALITY_FELL
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", instance.root_directory)
        assert said in autoopt("why", tenant, "routing")
        (shown,) = [one for one in json.loads(autoopt("status", tenant, "--json"))["modules"] if one["enabled"]]
    assert (shown["decision"], shown["live_quality"]["fall"]["group"]) == ("quality_fell", fall.group)
    alert, after = COLLECTORS[Kind.QUALITY_FELL](source, cursor)
    assert alert
    assert alert.summary == f"{tenant}/routing does worse than before"
    assert alert.detail.startswith(said)
    assert COLLECTORS[Kind.QUALITY_FELL](source, after)[0] is None
    materialize(instance, tenant, "routing", traces=800, end=datetime.now(UTC))
    assert reason() is Reason.NOT_DUE
    due_again(parts)
    assert check() == "1 tenants checked, 0 modules fell, 0 tenants deferred"
    assert reason() is Reason.NOT_DUE
    (once,) = observed(instance, tenant)
    assert (once["event"], once["version"]) == ("quality_fell", "baseline")


def test_no_outcome_counts_twice_and_late_reviews_count(
    parts: Connections, tenant: str, check: Callable[[], str]
) -> None:
    configure(parts.configs, tenant, modules={"routing": {}})
    send_traffic(parts.phoenix, tenant, requests(30, 2, 1, STEADY))
    check()
    first = read_checks(parts.files)[tenant]
    due_again(parts)
    check()
    assert read_checks(parts.files)[tenant].modules == first.modules
    project = parts.phoenix.project(project_name(tenant))
    assert project
    contract = get_module("routing").contract
    decisions = parts.phoenix.decisions(project, contract, start=NOW - timedelta(days=7), end=NOW)
    reviews = [NewAnnotation(each.span_id, "routing_annotation", "HUMAN", "wrong", {}) for each in decisions[:5]]
    time.sleep(1.1)  # Phoenix on SQLite tells the time of an annotation in whole seconds
    parts.phoenix.annotate(reviews)
    for _ in range(2):
        due_again(parts)
        check()
    assert read_checks(parts.files)[tenant].modules["routing"].outcomes == 35


def test_another_version_is_monitored_anew_and_only_by_its_own_decisions(
    parts: Connections, tenant: str, check: Callable[[], str]
) -> None:
    configure(parts.configs, tenant, modules={"routing": {}})
    send_traffic(parts.phoenix, tenant, requests(20, 2, 1, STEADY))
    check()
    version = store(parts.artifacts(tenant, "routing"), made_program(tenant, demos=["one"]), 1, active=True)
    begin = (NOW - datetime.now(UTC)) / timedelta(days=1)
    soon = datetime.now(UTC) + timedelta(days=1)
    others = requests(6, begin - 0.1, begin - 0.2, STEADY, **{"autoopt.program_version": "baseline"})
    own = requests(4, begin - 0.1, begin - 0.2, STEADY, **{"autoopt.program_version": version})
    send_traffic(parts.phoenix, tenant, others)
    send_traffic(parts.phoenix, tenant, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "datetime", type("Later", (datetime,), {"now": classmethod(lambda cls, tz: soon)}))
        due_again(parts)
        check()
    seen = read_checks(parts.files)[tenant].modules["routing"]
    assert (seen.version, seen.outcomes) == (version, 4)


def test_an_idle_tenant_and_one_without_a_project_cost_no_reading(
    parts: Connections, tenant: str, check: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"{tenant}-nowhere"
    for name in (tenant, nowhere):
        configure(parts.configs, name, modules={"routing": {}})
    send_traffic(parts.phoenix, tenant, requests(10, 2, 1, STEADY))
    assert check() == "2 tenants checked, 0 modules fell, 0 tenants deferred"
    assert read_checks(parts.files)[nowhere].modules == {}
    asked: list[str] = []
    read = Phoenix.decisions

    def count(self: Phoenix, *args: object, **kwargs: object) -> object:
        asked.append("decisions")
        return read(self, *args, **kwargs)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(Phoenix, "decisions", count)
    due_again(parts)
    assert check() == "2 tenants checked, 0 modules fell, 0 tenants deferred"
    assert asked == []
    assert check() == "0 tenants checked, 0 modules fell, 0 tenants deferred"
    parts.configs.write(nowhere, None)
    due_again(parts)
    check()
    assert read_checks(parts.files).keys() == {tenant}


def test_a_damaged_state_is_an_error_of_its_tenant_and_the_others_are_checked(
    parts: Connections, tenant: str, check: Callable[[], str]
) -> None:
    other = f"{tenant}-b"
    for name in (tenant, other):
        configure(parts.configs, name, modules={"routing": {}})
        send_traffic(parts.phoenix, name, requests(10, 2, 1, STEADY))
    path = quality_path(tenant, "routing")
    parts.files.replace(path, b'{"version": null, "began": "never"}')
    error = rf"1 modules .* first {tenant}/routing: .*quality.json is damaged: began: .* -> delete {path} from"
    with pytest.raises(dg.DagsterError, match=error):
        check()
    assert read_checks(parts.files)[other].modules["routing"].outcomes == 10
    assert check() == "0 tenants checked, 0 modules fell, 0 tenants deferred"  # it waits an hour
    parts.files.delete(path)
    due_again(parts)
    check()
    assert load_monitor(parts.files, tenant, "routing")


def test_a_replay_is_taken_once_and_one_of_another_version_or_of_a_damaged_state_is_dropped(
    parts: Connections, tenant: str, check: Callable[[], str]
) -> None:
    configure(parts.configs, tenant, modules={"routing": {}})
    send_traffic(parts.phoenix, tenant, requests(10, 2, 1, STEADY))
    check()
    changed = ModelReplay(
        tenant_id=tenant,
        module="routing",
        version=None,
        at=NOW,
        answered_at=NOW,
        same_at=NOW,
        lm="m",
        lm_before="m",
        asked=24,
        changed=6,
        repeated=6,
        returned=0,
        p=0.01,
    )
    report_replay(parts.files, changed.model_copy(update={"version": "v1"}))
    check()
    assert read_checks(parts.files)[tenant].modules["routing"].changed == ""
    report_replay(parts.files, changed)
    check()
    seen = read_checks(parts.files)[tenant].modules["routing"]
    assert str(seen).startswith("m answers 6 of 24 held-out requests differently than on ")
    state = load_monitor(parts.files, tenant, "routing")
    assert state
    assert (state.replay, state.changed, state.fall) == (changed, changed, None)
    assert reported_replays(parts.files) == []
    parts.files.replace(quality_path(tenant, "routing"), b"{}")
    report_replay(parts.files, changed)
    with pytest.raises(dg.DagsterError, match=r"1 modules .*quality.json is damaged"):
        check()
    assert reported_replays(parts.files) == []
    assert check() == "0 tenants checked, 0 modules fell, 0 tenants deferred"


def test_a_fall_of_a_local_router_alone_is_not_the_models(
    parts: Connections, tenant: str, check: Callable[[], str]
) -> None:
    configure(parts.configs, tenant, modules={"routing": {}})
    alone = {"costs": {"candidate": FAST.model_copy(update={"lm_calls": 0})}}
    store(parts.artifacts(tenant, "routing"), made_program(tenant, demos=["one"]), 1, active=True, changes=alone)
    one_class = {"routing.chosen_agent": "search_agent"}  # which counts cannot tell from all
    worse = {"search_agent": 0.55, "report_agent": 0.5}
    sent = [*requests(600, 6, 3, STEADY, **one_class), *requests(300, 3, 1, worse, **one_class)]
    send_traffic(parts.phoenix, tenant, sent)
    assert check() == "1 tenants checked, 1 modules fell, 0 tenants deferred"
    fall = read_falls(parts.files)[tenant, "routing"]
    assert (fall.cause, fall.detail) == ("traffic within classes", "this version asks no language model")


def test_a_tenant_may_decline_to_be_monitored(parts: Connections, tenant: str, check: Callable[[], str]) -> None:
    configure(parts.configs, tenant, modules={"routing": {}}, quality={"monitor": False})
    send_traffic(parts.phoenix, tenant, requests(10, 2, 1, STEADY))
    check()
    assert read_checks(parts.files)[tenant].modules == {}


def test_the_next_tick_goes_on_with_tenants_that_one_has_no_time_for(
    parts: Connections, tenant: str, check: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (tenant, f"{tenant}-b"):
        configure(parts.configs, name, modules={"routing": {}})
    seen, continued = [], quality.TenantChecker.check

    def slowly(self: quality.TenantChecker, last: TenantCheck | None) -> TenantCheck:
        seen.append(self)
        monkeypatch.setattr(quality, "_SECONDS_PER_TICK", 0)
        return continued(self, last)

    monkeypatch.setattr(quality.TenantChecker, "check", slowly)
    assert check() == "1 tenants checked, 0 modules fell, 1 tenants deferred"
    monkeypatch.setattr(quality, "_SECONDS_PER_TICK", 30)
    assert check() == "1 tenants checked, 0 modules fell, 0 tenants deferred"
    assert len(seen) == 2


def test_metrics_show_the_levels_and_falls_that_the_last_tick_has_seen(
    parts: Connections, tenant: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(parts.configs, tenant, modules={"routing": {}})
    steady = f"{tenant}-b"
    configure(parts.configs, steady, modules={"routing": {}})
    send_traffic(parts.phoenix, steady, requests(100, 2, 1, STEADY))
    send_traffic(parts.phoenix, tenant, [*requests(600, 6, 3, STEADY), *requests(200, 3, 1, WORSE)])
    with daemon_of(instance, monkeypatch) as dagster:
        (tick,) = dagster.tick(QUALITY_SENSOR)
    assert tick.skip_reason == "2 tenants checked, 1 modules fell, 0 tenants deferred"
    shown = scraped(exporter(instance))
    level, low, high = (shown[f"autoopt_live_quality{end}", "routing", steady] for end in ("", "_low", "_high"))
    assert low < level < high
    assert level == pytest.approx(0.92, abs=0.06)
    fell = {key[1:]: value for key, value in shown.items() if key[0] == "autoopt_quality_fall_timestamp_seconds"}
    assert fell == {("one class", "routing", tenant): read_falls(parts.files)[tenant, "routing"].at.timestamp()}
