"""Modules that a configuration names and the code location does not know: gone, or installed after it started."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from starlette.testclient import TestClient

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.modules.catalog import missing_module, modules, read_modules_again
from autoopt_pipeline.orchestration.assets import build_module_assets
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.orchestration.sensors.optimization import build_sensors
from autoopt_pipeline.registry.rollout_records import indexed_rollouts
from autoopt_pipeline.run_history.ticks import TickReport
from autoopt_pipeline.scheduling.conditions import Reason
from autoopt_pipeline.settings import Settings, load_settings
from autoopt_pipeline.tenants.config import RolloutPolicy
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import AGENTS, autoopt
from tests.support.dashboard_client import client, form, visiting
from tests.support.phoenix_traffic import requests
from tests.support.stored_programs import bring, made_program
from tests.support.stored_programs import store as save_version
from tests.support.tenant_history import configure

URGENCY = """
modules:
  urgency:
    description: Decide how soon somebody needs an answer.
    span: support.triage
    inputs: {text: triage.text}
    output: {urgency: triage.urgency}
    labels: {now: at once, later: some day}
    annotation: urgency_annotation
    scheduled_by_default: false
"""


@pytest.fixture(autouse=True)
def _modules_of_this_test() -> Iterator[None]:
    modules()  # as the code location knows them
    yield
    modules.cache_clear()


@pytest.fixture
def declared(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of declared modules, which the process began with and in which nothing is declared yet."""
    path = home / "modules.yaml"
    path.write_text("modules: {}")
    monkeypatch.setenv("AUTOOPT_MODULES_FILE", str(path))
    modules.cache_clear()
    modules()
    return path


def evaluate(instance: dg.DagsterInstance, name: str) -> tuple[dg.SensorResult | dg.SkipReason, str | None]:
    """What a look of the sensor comes to, and its cursor."""
    keys = dg.AssetSelection.assets(*(asset.key for asset in build_module_assets()))
    (sensor,) = [each for each in build_sensors(Settings(), keys) if each.name == name]
    context = dg.build_sensor_context(instance=instance, resources={"services": Services()})
    result = sensor(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result, context.cursor


def test_the_module_is_an_error_and_its_tenants_other_modules_and_other_tenants_go_on(
    store: TenantConfigStore,
    phoenix: Phoenix,
    tenant: str,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    both = (tenant, f"{tenant}-b")
    configure(store, both[0], modules={"routing": {}, "gone": {}}, min_samples_for_optimization=2)
    configure(store, both[1], modules={"routing": {}}, min_samples_for_optimization=2)
    for name in both:
        register_tenant(instance, name)
    waiting, cursor = evaluate(instance, "auto_optimization_sensor")
    assert isinstance(waiting, dg.SkipReason)
    assert f"{tenant}/gone: error, module 'gone' is not installed here -> " in (waiting.skip_message or "")
    report = TickReport.load(cursor)
    assert report
    (told,) = report.missing
    assert told.startswith("1 tenant: module 'gone' is not installed here -> install it and reload the code location")
    assert told.endswith("'autoopt config unset TENANT modules.gone'")
    for name in both:
        send_traffic(phoenix, name, requests(5, TrafficProfile(reviewed=0)))
    launched, cursor = evaluate(instance, "auto_optimization_sensor")
    assert isinstance(launched, dg.SensorResult)
    assert {request.partition_key: request.asset_selection for request in launched.run_requests or ()} == {
        name: [dg.AssetKey("routing")] for name in both
    }
    assert TickReport.load(cursor) != report  # it is still told, beside what was launched
    assert (TickReport.load(cursor) or report).missing == report.missing


def test_a_module_that_was_declared_after_the_start_is_to_be_loaded_and_not_to_be_installed(
    declared: Path, store: TenantConfigStore, tenant: str, instance: dg.DagsterInstance
) -> None:
    configure(store, tenant, modules={"urgency": {}})
    declared.write_text(URGENCY)
    waiting, _ = evaluate(instance, "auto_optimization_sensor")
    assert isinstance(waiting, dg.SkipReason)
    assert "module 'urgency' was installed after this process began -> reload the code location, or restart it" in (
        waiting.skip_message or ""
    )
    modules.cache_clear()  # as in the new process
    waiting, cursor = evaluate(instance, "auto_optimization_sensor")
    assert isinstance(waiting, dg.SkipReason)
    assert "error" not in (waiting.skip_message or "")
    assert (TickReport.load(cursor) or pytest.fail()).missing == ()


def test_a_package_that_was_installed_after_the_start_is_found_though_this_process_cannot_load_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"m{uuid.uuid4().hex[:8]}"
    monkeypatch.syspath_prepend(tmp_path)
    assert f"module '{name}' is not installed here" in str(missing_module(name))
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[autoopt_pipeline.modules]\n{name} = {name}_is_nowhere:SPEC\n")
    assert "installed after this process began -> reload" in str(missing_module(name))
    read_modules_again()
    assert "routing" in modules()  # those that are known stay


def test_a_module_that_is_off_is_no_error_though_it_is_gone(
    store: TenantConfigStore, tenant: str, instance: dg.DagsterInstance
) -> None:
    configure(store, tenant, modules={"routing": {}, "gone": {"mode": "off"}})
    _, cursor = evaluate(instance, "auto_optimization_sensor")
    report = TickReport.load(cursor)
    assert report
    assert report.missing == ()
    assert Reason.ERROR.value not in report.decisions


@pytest.fixture
def watched(
    store: TenantConfigStore, tenant: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Connections:
    """A tenant with a rollout of `routing`, and one of a module that is gone since."""
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    parts = Connections(load_settings())
    configure(parts.configs, tenant, modules={"routing": {}, "urgency": {}})
    for module in ("routing", "urgency"):
        artifacts = parts.artifacts(tenant, module)
        bring(artifacts, save_version(artifacts, made_program(tenant, module, demos=["one"])), RolloutPolicy())
    return parts


def test_the_watch_of_a_module_that_is_gone_is_an_error_and_others_are_analyzed_at(
    declared: Path, instance: dg.DagsterInstance, request: pytest.FixtureRequest
) -> None:
    declared.write_text(URGENCY)
    modules.cache_clear()
    parts: Connections = request.getfixturevalue("watched")
    declared.write_text("modules: {}")
    modules.cache_clear()
    for _ in range(2):
        told, _ = evaluate(instance, "rollout_monitor_sensor")
        assert isinstance(told, dg.SkipReason)
        assert "1 of unknown modules (urgency)" in (told.skip_message or "")
    looked = {each.module: each.analyzed_at for each in indexed_rollouts(parts.files)}
    assert looked["routing"]
    assert looked["urgency"] is None
    (tenant,) = parts.configs.current()
    parts.configs.write(tenant, None)
    evaluate(instance, "rollout_monitor_sensor")
    last = parts.artifacts(tenant, "urgency").last_transition()
    assert last
    assert last.canary is None


@pytest.fixture
def acme(home: Path) -> TenantConfigStore:
    """The store of a home whose tenant acme names a module that is gone since."""
    autoopt("tenants", "add", "acme", *AGENTS)
    opened = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")
    opened.write("acme", {"tenant_id": "acme", "agents": [{"name": "a"}, {"name": "b"}], "modules": {"gone": {}}})
    return opened


def document(store: TenantConfigStore) -> dict:
    newest = store.history("acme")[-1].document
    assert isinstance(newest, dict)
    return newest


def test_a_module_that_is_gone_can_be_taken_out(acme: TenantConfigStore) -> None:
    said = autoopt("config", "unset", "acme", "modules.gone")
    assert "acme: configuration version 3" in said
    assert "modules.gone: {} -> none" in said
    assert document(acme)["modules"] == {}


def test_a_module_that_is_gone_is_in_the_way_of_no_other_change(acme: TenantConfigStore) -> None:
    autoopt("config", "set", "acme", "budget.max_lm_calls=2000")
    autoopt("config", "revert", "acme", "2")
    autoopt("config", "set", "acme", "modules.gone.mode=off")
    assert document(acme)["modules"] == {"gone": {"mode": "off"}}
    assert "unknown module 'other'" in autoopt("config", "set", "acme", "modules.other.mode=auto", status=2)


def test_what_was_exported_is_imported_with_the_module_that_is_gone(acme: TenantConfigStore, tmp_path: Path) -> None:
    file = tmp_path / "tenants.jsonl"
    autoopt("tenants", "export", str(file))
    assert "acme imported" in autoopt("tenants", "import", str(file))
    autoopt("config", "unset", "acme", "modules.gone")
    assert "1 of 1 rows were refused" in autoopt("tenants", "import", str(file), status=2)


def test_fields_follow_their_defaults_again(acme: TenantConfigStore) -> None:
    autoopt("config", "set", "acme", "budget.max_lm_calls=2000", "mode=propose")
    said = autoopt("config", "unset", "acme", "budget.max_lm_calls", "mode")
    assert "budget.max_lm_calls: 2000 -> 6000" in said
    assert 'mode: "propose" -> "auto"' in said
    assert "mode" not in document(acme)
    before = acme.history("acme")
    for field in ("mode", "tenant_id", "modules.routing", "agents.0", "nonsense.x", ""):
        assert "is not a field that was set" in autoopt("config", "unset", "acme", field, status=2)
    assert acme.history("acme") == before


def test_what_is_read_of_the_other_modules_is_shown_beside_the_error(
    acme: TenantConfigStore, phoenix: Phoenix, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    configure(acme, tenant, modules={"routing": {}, "gone": {}})
    send_traffic(phoenix, tenant, requests(3, TrafficProfile(reviewed=0)))
    told = json.loads(autoopt("traces", "sample", tenant, "--json", status=2))
    assert len(told["modules"]["routing"]) == 3
    assert "unknown module 'gone'" in told["errors"]["gone"]
    assert "error gone: unknown module" in autoopt("traces", "sample", tenant, status=2)
    assert "error: module 'gone' is not installed here" in autoopt("why", tenant, "gone", status=2)


class TestDashboard:
    @pytest.fixture
    def browser(
        self, acme: TenantConfigStore, home: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
    ) -> TestClient:
        monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("AUTOOPT_HOME", str(home / ".autoopt"))
        return client(instance)

    def test_another_field_is_saved_and_the_module_stays(self, browser: TestClient, acme: TenantConfigStore) -> None:
        here = "/tenants/acme/configuration"
        answer = browser.post(here, data=form(browser.get(here).text, here, mode="propose"))
        assert answer.status_code == 200
        assert document(acme)["mode"] == "propose"
        assert "gone" in document(acme)["modules"]

    def test_the_tenants_page_says_what_to_do(self, browser: TestClient) -> None:
        page = browser.get("/tenants/acme").text
        assert "module &#39;gone&#39; is not installed here" in page
        assert "autoopt config unset TENANT modules.gone" in page

    def test_it_learns_of_a_module_by_itself(
        self, declared: Path, acme: TenantConfigStore, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", "http://127.0.0.1:9")
        acme.write("acme", {"tenant_id": "acme", "modules": {"urgency": {}}})
        with visiting(home) as browser:
            assert "is not installed here" in browser.get("/tenants/acme").text
            declared.write_text(URGENCY)
            for _ in range(60):
                browser.get("/")  # somebody rollouts, so it looks again and again
                page = browser.get("/tenants/acme").text
                if "is not installed here" not in page:
                    break
                time.sleep(0.5)
            assert "is not installed here" not in page
            assert "urgency" in page
