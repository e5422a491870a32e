"""`autoopt trigger`, against a real Phoenix and a real instance."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from autoopt_pipeline.cli.completion import complete_module, complete_tenant
from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.stack import Stack, start_dagster_dev
from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, TrafficProfile
from autoopt_pipeline.names import NEW_EVIDENCE_TAG
from autoopt_pipeline.orchestration.assets import WINDOW_END_TAG
from autoopt_pipeline.orchestration.partitions import registered_tenants
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.run_history.module_events import EventKind, newest_events
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import AUTOOPT, autoopt
from tests.support.phoenix_traffic import requests
from tests.support.tenant_history import configure

Trigger = Callable[..., str]


@pytest.fixture
def trigger(store: TenantConfigStore, tenant: str) -> Trigger:
    def run(*options: str, status: int = 0, **env: str) -> str:
        return autoopt("trigger", "--tenant-id", tenant, *options, status=status, env=env)

    return run


def runs(home: Path) -> list[dg.DagsterRun]:
    with open_instance(home) as instance:
        return list(instance.get_runs())


def test_what_is_due_is_run_once_as_the_sensor_would(
    home: Path, store: TenantConfigStore, phoenix: Phoenix, tenant: str, trigger: Trigger
) -> None:
    configure(store, tenant, min_samples_for_optimization=20)
    send_traffic(phoenix, tenant, requests(25, TrafficProfile(reviewed=0)))
    dry = trigger("--module", "routing", "--dry-run")
    assert "25 new traces, 20 needed" in dry
    assert runs(home) == []

    told = trigger("--module", "routing")  # nobody made the tenant a partition
    assert "routing: reading traces of" in told
    assert f"{tenant}/routing: not_enough_data" in told
    assert "DEBUG" not in told
    (run,) = runs(home)
    assert run.asset_selection == {dg.AssetKey("routing")}
    assert run.tags["dagster/partition"] == tenant
    assert run.tags[NEW_EVIDENCE_TAG] == "routing=25+0"
    assert WINDOW_END_TAG in run.tags

    assert "skipped: not_due" in trigger("--module", "routing", status=1)
    assert "to run, forced: not_due" in trigger("--module", "routing", "--force", "--dry-run")
    assert "to run" in trigger("--dry-run")  # modality, which has not been run
    assert len(runs(home)) == 1


def test_a_dry_run_estimates_what_the_run_then_uses(
    home: Path, store: TenantConfigStore, phoenix: Phoenix, tenant: str, trigger: Trigger
) -> None:
    # A cheaper candidate's test may go on, instead of another search.
    better = {"objective": {"max_loss": 0}, "local_router": False}
    configure(store, tenant, agents=[{"name": name} for name in SAMPLE_AGENTS], **better)
    send_traffic(phoenix, tenant, requests(300, TrafficProfile(reviewed=1.0)))

    def estimated(*options: str) -> tuple[float, float, str]:
        told = " ".join(trigger("--module", "routing", "--dry-run", *options).split())
        found = re.search(r"routing: about ([\d,]+) LM calls and ([\d,]+) tokens, dollars unknown: (.*)", told)
        assert found, told
        calls, tokens = (float(number.replace(",", "")) for number in found.groups()[:2])
        return calls, tokens, found[3]

    calls, tokens, purpose = estimated()
    assert purpose == "a search for a better program"
    assert runs(home) == []
    trigger("--module", "routing")
    with open_instance(home) as instance:
        (used,) = newest_events(instance, EventKind.MATERIALIZATION, "routing", tenants=[tenant], limit=1).items
    for expected, name in ((calls, "lm_calls"), (tokens, "lm_tokens")):
        assert 1 / 1.5 <= expected / used.values[name] <= 1.5
    assert estimated("--force")[2] == "a search for a better program, corrected by the last search"

    autoopt("config", "set", tenant, "budget.max_dollars=1")
    refused = trigger("--module", "routing", "--dry-run", "--force")
    assert "no estimate: language model stand-in: its price is unknown" in refused


def test_too_few_traces_are_counted_and_skipped(
    home: Path, store: TenantConfigStore, phoenix: Phoenix, tenant: str, trigger: Trigger
) -> None:
    configure(store, tenant)
    send_traffic(phoenix, tenant, requests(3, TrafficProfile(reviewed=0)))
    told = trigger("--module", "routing", "--module", "modality", status=1)
    assert f"{tenant}/modality,routing" in told
    assert "yes  interval over      interval 1h; never attempted" in told
    assert "no   enough new traces  3 new traces, 100 needed" in told
    assert "cross_modal" not in told
    assert runs(home) == []


def test_a_disabled_module_is_not_run_by_force(store: TenantConfigStore, tenant: str, trigger: Trigger) -> None:
    configure(store, tenant, enable_auto_optimization=False)
    assert "enable_auto_optimization is false" in trigger("--module", "routing", "--force", status=1)
    assert "skipped: disabled" in trigger("--force", status=1)


def test_a_tenant_is_never_run_twice_at_a_time(
    home: Path, store: TenantConfigStore, tenant: str, trigger: Trigger
) -> None:
    configure(store, tenant)
    with open_instance(home) as instance:
        running = create_run_for_test(
            instance,
            tags={"dagster/partition": tenant},
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset({dg.AssetKey("modality")}),
        )
    assert f"in_progress, run {running.run_id}" in trigger("--module", "routing", "--force", status=1)


def test_a_run_that_fails_is_an_error_of_one_line_with_its_cause(
    home: Path, store: TenantConfigStore, tenant: str, trigger: Trigger
) -> None:
    configure(store, tenant)
    error = trigger("--module", "routing", "--force", status=2)
    assert "routing: Phoenix http" in error
    assert "has no project" in error
    assert error.count("\n") == 1
    assert "skipped: backing_off" in trigger("--module", "routing", status=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--module", "ruting"], "did you mean 'routing'?"),
        (["--module", "routing", "--phoenix-endpoint", "http://127.0.0.1:9"], "does not answer"),
        (["--module", "routing", "--force", "--launch"], "Dagster at http://127.0.0.1:9 does not answer"),
        (["--launch", "--phoenix-endpoint", "http://127.0.0.1:9"], "--launch"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_an_error_is_never_a_skip(
    store: TenantConfigStore, phoenix: Phoenix, tenant: str, trigger: Trigger, options: list[str], words: str
) -> None:
    configure(store, tenant)
    env = {"AUTOOPT_PHOENIX_ENDPOINT": phoenix.endpoint, "AUTOOPT_DAGSTER_UI_URL": "http://127.0.0.1:9"}
    assert words in trigger(*options, status=2, **env)


def test_a_configuration_that_cannot_be_read_is_an_error(
    store: TenantConfigStore, tenant: str, trigger: Trigger
) -> None:
    store.write(tenant, {"tenant_id": tenant, "min_samples_for_optimization": "many"})
    assert "min_samples_for_optimization" in trigger(status=2)


def test_an_error_that_nobody_foresaw_is_an_error_too(
    home: Path, store: TenantConfigStore, tenant: str, trigger: Trigger
) -> None:
    configure(store, tenant)
    (home / ".autoopt" / "dagster" / "history").mkdir(parents=True)
    (home / ".autoopt" / "dagster" / "history" / "runs.db").write_text("no database " * 1000)
    assert "Traceback" in trigger(status=2)


def test_the_exit_status_tells_a_shell_what_happened(store: TenantConfigStore, phoenix: Phoenix, tenant: str) -> None:
    configure(store, tenant, min_samples_for_optimization=2, modules={"routing": {}, "modality": {"mode": "off"}})
    send_traffic(phoenix, tenant, requests(3, TrafficProfile(reviewed=0)))

    def status(*options: str) -> int:
        command = [AUTOOPT, "trigger", *options]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert status("--tenant-id", tenant, "--module", "routing", "--dry-run") == 0
    assert status("--tenant-id", tenant, "--module", "modality") == 1
    assert status("--tenant-id", "nobody", "--module", "routing") == 2


def test_a_launched_run_goes_through_the_queue_and_is_followed_to_its_end(
    home: Path, store: TenantConfigStore, phoenix: Phoenix, tenant: str, trigger: Trigger
) -> None:
    configure(store, tenant)
    send_traffic(phoenix, tenant, requests(3, TrafficProfile(reviewed=0)))
    with Processes(home / "logs") as processes:
        url = start_dagster_dev(processes, Stack(home, phoenix.endpoint, {}), free_port())
        told = trigger("--module", "routing", "--force", "--launch", AUTOOPT_DAGSTER_UI_URL=url)
    (run,) = runs(home)
    assert f"run {run.run_id}: queued" in told
    assert f"run {run.run_id}: success" in told
    assert "routing: reading traces of" in told
    assert f"{tenant}/routing: not_enough_data" in told
    assert run.tags["dagster/partition"] == tenant
    assert run.remote_job_origin is not None
    with open_instance(home) as instance:
        assert registered_tenants(instance) == {tenant}


def test_the_shell_completes_tenants_and_modules_and_is_quiet_where_it_cannot(
    home: Path, store: TenantConfigStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tenant in ("acme", "acme:eu", "globex"):
        configure(store, tenant)
    assert complete_tenant("ac") == ["acme", "acme:eu"]
    assert complete_module("mo") == ["modality"]
    monkeypatch.setenv("AUTOOPT_CONFIG_STORE_URL", "redis://127.0.0.1:1/0")
    assert complete_tenant("ac") == []


def test_the_versions_of_what_matters_are_told() -> None:
    told = autoopt("--version")
    assert [line.split()[0] for line in told.splitlines()] == [
        "autoopt-pipeline",
        "dagster",
        "dspy",
        "arize-phoenix-client",
    ]
