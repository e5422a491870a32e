"""`autoopt status`, against a real Phoenix and a real instance."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import autoopt
from tests.support.phoenix_traffic import requests
from tests.support.stored_programs import made_program
from tests.support.stored_programs import store as stored_program
from tests.support.tenant_history import configure, failed_run, materialize


def artifacts(home: Path, tenant: str) -> VersionStore:
    return VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), tenant, "routing")


def told(*arguments: str, status: int = 0) -> dict[tuple[str, str], dict]:
    document = json.loads(autoopt("status", *arguments, "--json", status=status))
    assert datetime.fromisoformat(document["now"]).utcoffset() == timedelta(0)
    return {(each["tenant"], each["module"]): each for each in document["modules"]}


def test_everything_that_is_known_of_a_module_is_in_the_json(
    home: Path, store: TenantConfigStore, phoenix: Phoenix, tenant: str
) -> None:
    configure(store, tenant)
    version = stored_program(artifacts(home, tenant), made_program(tenant), active=True)
    now = datetime.now(UTC)
    with open_instance(home) as instance:
        materialize(instance, tenant, "routing", traces=1, end=now - timedelta(hours=2))
        run_id = failed_run(instance, tenant, ["modality"])
    send_traffic(phoenix, tenant, requests(12, TrafficProfile(reviewed=0)))

    modules = told(tenant)
    routing, modality = modules[tenant, "routing"], modules[tenant, "modality"]
    assert (routing["decision"], routing["enabled"], routing["backing_off"]) == ("not_due", True, False)
    assert (routing["active_version"], routing["active_score"]) == (version, 0.9)
    assert (routing["new_traces"], routing["needed"]) == (12, 100)
    assert datetime.fromisoformat(routing["next_due"]) > now
    assert abs(datetime.fromisoformat(routing["last_outcome_at"]) - now) < timedelta(minutes=1)
    unmet = [each["name"] for each in routing["conditions"] if not each["met"]]
    assert unmet == ["interval over", "enough new traces"]
    assert (modality["decision"], modality["backing_off"], modality["failures"]) == ("backing_off", True, 1)
    assert modality["last_failed_run"] == run_id
    assert modality["active_version"] is None
    assert not modules[tenant, "unified"]["enabled"]


def test_a_table_fits_a_terminal_and_cuts_nothing_that_is_needed(
    home: Path, store: TenantConfigStore, tenant: str
) -> None:
    configure(store, tenant)
    version = stored_program(artifacts(home, tenant), made_program(tenant), active=True)
    with open_instance(home) as instance:
        materialize(instance, tenant, "routing", traces=1, end=datetime.now(UTC))
    table = autoopt("status", width=80 + len(tenant))
    assert max(map(len, table.splitlines())) <= 80 + len(tenant)
    assert f"{version}," in table.split()
    assert table.count("too_few_traces") == 1  # modules of which there is the same to say share a row


def test_new_traces_are_counted_of_what_waits_for_its_interval_when_one_tenant_is_asked_for(
    home: Path, store: TenantConfigStore, phoenix: Phoenix, tenant: str
) -> None:
    configure(store, tenant)
    with open_instance(home) as instance:
        materialize(instance, tenant, "routing", traces=0, end=datetime.now(UTC) - timedelta(hours=2))
    send_traffic(phoenix, tenant, requests(7, TrafficProfile(reviewed=0)))
    assert "7 of 100 new traces" in autoopt("status", tenant)
    assert told()[tenant, "routing"]["new_traces"] is None
    down = autoopt("status", tenant, status=2, env={"AUTOOPT_PHOENIX_ENDPOINT": "http://127.0.0.1:9"})
    assert "interval 1h; due" in down  # what does not depend on Phoenix is still told


def test_of_many_tenants_those_that_need_attention_are_told_first_and_the_rest_counted(
    home: Path, store: TenantConfigStore
) -> None:
    for number in range(30):
        configure(store, f"quiet-{number:02}", enable_auto_optimization=False)
        store.write(f"broken-{number:02}", {"tenant_id": "?"})
    configure(store, "failing")
    with open_instance(home) as instance:
        failed_run(instance, "failing", ["routing"])
    listed = autoopt("status", status=2)
    assert "61 tenants: 1 backing_off, 153 disabled, 30 error, 1 too_few_traces" in listed
    assert "quiet-" not in listed
    assert listed.count("broken-") >= 20
    assert "and 11 more tenants that need attention" in listed
    assert "autoopt status TENANT" in listed
    assert len(told(status=2)) == 30 * 5 + 30 + 5


def test_many_tenants_in_good_order_are_one_line(home: Path, store: TenantConfigStore) -> None:
    for number in range(21):
        configure(store, f"quiet-{number:02}", enable_auto_optimization=False)
    assert "no tenant needs attention" in autoopt("status")


@pytest.mark.parametrize("file", ["active.json", "manifest.json"])
def test_a_damaged_program_is_told_with_its_module_and_hides_no_other(
    home: Path, store: TenantConfigStore, tenant: str, file: str
) -> None:
    configure(store, tenant)
    stored_program(artifacts(home, tenant), made_program(tenant), active=True)
    (path,) = (home / ".autoopt" / "artifacts").rglob(file)
    path.write_text("{}")
    modules = told(tenant)
    assert "is damaged" in modules[tenant, "routing"]["error"]
    assert modules[tenant, "routing"]["active_score"] is None
    assert modules[tenant, "modality"]["error"] is None
    assert "is damaged" in autoopt("status", tenant)


def test_a_candidate_that_waits_for_a_person_needs_attention(home: Path, store: TenantConfigStore) -> None:
    for number in range(21):
        configure(store, f"tenant-{number:02}")
    metadata = {"window_end": dg.MetadataValue.timestamp(datetime.now(UTC)), "verdict": "awaiting_approval"}
    with open_instance(home) as instance:
        instance.report_runless_asset_event(
            dg.AssetMaterialization("routing", partition="tenant-07", metadata=metadata)
        )
    listed = autoopt("status")
    assert "last awaiting_approval" in listed
    assert listed.count("tenant-") == 1


@pytest.mark.parametrize("decided", ["approved", "declined"])
def test_what_a_person_has_decided_about_needs_no_attention_any_more(
    home: Path, store: TenantConfigStore, tenant: str, decided: str
) -> None:
    configure(store, tenant)
    programs = artifacts(home, tenant)
    version = stored_program(programs, made_program(tenant), changes={"verdict": "awaiting_approval"})
    metadata = {
        "window_end": dg.MetadataValue.timestamp(datetime.now(UTC)),
        "verdict": "awaiting_approval",
        "version": version,
    }
    with open_instance(home) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("routing", partition=tenant, metadata=metadata))
    assert told(tenant)[tenant, "routing"]["needs_approval"]
    if decided == "approved":
        programs.transition(version, expected=None, actor="marta", reason="good")
    else:
        programs.decline(version, actor="marta", reason="bad")
    routing = told(tenant)[tenant, "routing"]
    assert (routing["needs_approval"], routing["last_verdict"], routing["health"]) == (False, decided, "up to date")
    for said in (autoopt("status", tenant), autoopt("why", tenant, "routing")):
        assert decided in said
        assert "awaiting" not in said


@pytest.mark.parametrize("actor", ["rollout monitor", "marta"])
def test_a_rollback_is_a_state_of_its_own_until_the_next_move(
    home: Path, store: TenantConfigStore, tenant: str, actor: str
) -> None:
    configure(store, tenant)
    programs = artifacts(home, tenant)
    one = stored_program(programs, made_program(tenant, demos=["a"]), 1, active=True)
    two = stored_program(programs, made_program(tenant, demos=["b"]), 2, active=True)
    with open_instance(home) as instance:
        materialize(instance, tenant, "routing", traces=1, end=datetime.now(UTC))
    before = told(tenant)[tenant, "routing"]
    assert (before["health"], before["rolled_back"]) == ("up to date", None)
    programs.transition(one, expected=two, actor=actor, reason="errors rose")
    routing = told(tenant)[tenant, "routing"]
    assert (routing["health"], routing["active_version"]) == ("up to date", one)
    assert {name: routing["rolled_back"][name] for name in ("versions", "actor", "reason")} == {
        "versions": [two],
        "actor": actor,
        "reason": "errors rose",
    }
    assert re.search(rf"rolled back \d s ago by {actor}: {two}", " ".join(autoopt("status", tenant).split()))
    assert re.search(rf"rolled back  {two}, \d s ago, by {actor}: errors rose", autoopt("why", tenant, "routing"))
    programs.transition(two, expected=one, actor="marta", reason="it was not that")
    assert told(tenant)[tenant, "routing"]["health"] == "up to date"
