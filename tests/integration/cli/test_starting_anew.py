"""Tenants that are removed: asked about first, brought back whole, or deleted and begun anew."""

import json
import os
import pty
import random
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import SyntheticRequest, TrafficProfile, simulate_requests
from autoopt_pipeline.orchestration.partitions import registered_tenants
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import AGENTS, AUTOOPT, autoopt
from tests.support.dashboard_client import text_of, visiting
from tests.support.phoenix_traffic import requests
from tests.support.stored_programs import made_program
from tests.support.stored_programs import store as stored_program
from tests.support.tenant_history import failed_run, materialize


@pytest.fixture
def store(home: Path, phoenix: Phoenix, monkeypatch: pytest.MonkeyPatch) -> TenantConfigStore:
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    return open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")


def artifacts(home: Path, tenant: str) -> VersionStore:
    return VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), tenant, "routing")


def partitions(home: Path) -> set[str]:
    with open_instance(home) as instance:
        return registered_tenants(instance)


@pytest.mark.parametrize("command", [["tenants", "remove", "acme"], ["artifacts", "delete", "acme", "--force"]])
def test_nothing_is_taken_away_where_nobody_can_be_asked(
    home: Path, store: TenantConfigStore, command: list[str]
) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    programs = artifacts(home, "acme")
    version = stored_program(programs, made_program("acme"), active=True)
    said = autoopt(*command, status=2)
    assert said.startswith("error: ")
    assert said.endswith("add --yes\n")
    assert said.count("\n") == 1
    assert "acme" in store.current()
    assert programs.load(version)


@pytest.mark.parametrize(("answer", "deleted"), [("n", False), ("y", True)])
def test_a_person_at_a_terminal_is_asked_before_programs_are_deleted(
    home: Path, store: TenantConfigStore, answer: str, deleted: bool
) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    stored_program(artifacts(home, "acme"), made_program("acme"), active=True)
    autoopt("tenants", "remove", "acme", "--yes")
    master, terminal = pty.openpty()
    os.write(master, f"{answer}\n".encode())
    command = [AUTOOPT, "artifacts", "delete", "acme"]
    done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, check=False)
    os.close(master)
    os.close(terminal)
    assert "Delete 5 files of acme for good [y/N]" in done.stderr
    assert (done.returncode == 0) is deleted
    assert (artifacts(home, "acme").versions() == []) is deleted
    assert (store.history("acme")[-1].since is not None) is deleted


def test_a_removed_tenant_is_brought_back_as_the_message_says(home: Path, store: TenantConfigStore) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    autoopt("config", "set", "acme", "min_samples_for_optimization=7")
    said = autoopt("tenants", "remove", "acme", "--yes")
    assert "'autoopt config revert acme 2' brings the tenant back" in said
    assert partitions(home) == set()
    assert "acme is back: configuration version 4, the same as 2" in autoopt("config", "revert", "acme", "2")
    assert store.current()["acme"].parse().min_samples_for_optimization == 7
    assert partitions(home) == {"acme"}
    assert "did you mean 'acme'?" in autoopt("config", "revert", "acm", "1", status=2)


def test_what_was_learnt_counts_on_for_a_tenant_that_is_only_brought_back(
    home: Path, store: TenantConfigStore, phoenix: Phoenix, tenant: str
) -> None:
    autoopt("tenants", "add", tenant, *AGENTS)
    with open_instance(home) as instance:
        materialize(instance, tenant, "routing", traces=1, end=datetime.now(UTC) - timedelta(minutes=1))
    autoopt("tenants", "remove", tenant, "--yes")
    autoopt("tenants", "add", tenant, *AGENTS)
    (routing,) = [each for each in modules_of(tenant) if each["module"] == "routing"]
    assert routing["decision"] == "not_due"


def modules_of(tenant: str) -> list[dict]:
    return json.loads(autoopt("status", tenant, "--json"))["modules"]


def test_a_tenant_that_is_removed_deleted_and_added_again_starts_anew(
    home: Path, store: TenantConfigStore, phoenix: Phoenix, tenant: str
) -> None:
    autoopt("tenants", "add", tenant, *AGENTS)
    autoopt("config", "set", tenant, "min_samples_for_optimization=5")
    send_traffic(phoenix, tenant, requests(12, TrafficProfile(reviewed=0)))
    stored_program(artifacts(home, tenant), made_program(tenant), active=True)
    with open_instance(home) as instance:
        materialize(instance, tenant, "routing", traces=1, end=datetime.now(UTC) - timedelta(minutes=1))
        failed_run(instance, tenant, ["modality"])
    autoopt("tenants", "remove", tenant, "--yes")
    autoopt("artifacts", "delete", tenant, "--yes")
    autoopt("tenants", "add", tenant, *AGENTS)
    autoopt("config", "set", tenant, "min_samples_for_optimization=5")
    for each in modules_of(tenant):
        if each["module"] not in ("routing", "modality"):
            continue
        assert (each["decision"], each["new_traces"]) == ("too_few_traces", 0)
        assert (each["last_outcome_at"], each["failures"], each["active_version"]) == (None, 0, None)
        assert each["health"] == "collecting data"
    assert "never optimized" in autoopt("why", tenant, "routing")
    with visiting(home) as browser:
        assert "No run has come to an outcome yet" in text_of(browser.get(f"/tenants/{tenant}/modules/routing"))

    start = datetime.now(UTC)
    truths = [SyntheticRequest(f"new question {number}", {"agent": "search_agent"}) for number in range(6)]
    answers = {"agent": ["search_agent", "report_agent"]}
    end = start + timedelta(seconds=1)
    send_traffic(
        phoenix,
        tenant,
        list(simulate_requests(truths, answers, TrafficProfile(), start=start, end=end, rng=random.Random(1))),
    )
    time.sleep(1)
    assert json.loads(autoopt("traces", "stats", tenant, "--json"))["modules"]["routing"]["decisions"] == 6
    said = autoopt("trigger", "--tenant-id", tenant, "--module", "routing")
    assert "enough new traces  6 new traces, 5 needed" in said
    with open_instance(home) as instance:
        (record, _) = instance.fetch_materializations(dg.AssetKey("routing"), limit=5).records
        assert record.asset_materialization
        metadata = {name: value.value for name, value in record.asset_materialization.metadata.items()}
    assert metadata["spans_read"] == 6
    since = store.current()[tenant].since
    assert since
    assert metadata["window_start"] == pytest.approx(since.timestamp())
