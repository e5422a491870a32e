"""Two runs of a tenant at once: the later one leaves its modules to the first, which is nobody's failure."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from autoopt_pipeline.definitions import defs
from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, sample_config
from autoopt_pipeline.orchestration.launch import run_in_process
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.run_history.module_failures import read_module_failures
from autoopt_pipeline.run_history.outcomes import read_attempts
from autoopt_pipeline.tenants.store import open_config_store, write_config
from tests.support.command_line import autoopt
from tests.support.dashboard_client import text_of, visiting
from tests.support.scraped_metrics import exporter, scraped
from tests.support.tenant_history import failed_run

DAGSTER = Path(sys.executable).parent / "dagster"


@pytest.fixture
def acme(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """The instance of a home with the tenant acme. No Phoenix answers: nothing here comes so far as to ask it."""
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", "http://127.0.0.1:9")
    write_config(open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"), sample_config(SAMPLE_TENANTS[0]))
    with open_instance(home) as opened:
        register_tenant(opened, "acme")
        yield opened


def run_that_began(instance: dg.DagsterInstance) -> str:
    run = create_run_for_test(
        instance, tags={"dagster/partition": "acme"}, asset_selection=frozenset([dg.AssetKey("routing")])
    )
    started = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, run.job_name)
    instance.report_dagster_event(started, run.run_id)
    return run.run_id


def test_a_run_by_hand_beside_another_is_told_in_one_line_and_fails_nothing(
    home: Path, acme: dg.DagsterInstance
) -> None:
    metrics = exporter(acme)
    first = run_that_began(acme)
    command = [DAGSTER, "asset", "materialize", "--select", "routing,modality", "--partition", "acme"]
    done = subprocess.run(
        [*command, "-m", "autoopt_pipeline.definitions"], env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "Stack Trace" not in said
    (line,) = [each for each in said.splitlines() if "skipped:" in each and " routing " in each]
    assert f"run {first} of tenant acme began earlier and has not ended" in line

    run = acme.get_run_by_id(first)
    assert run
    acme.report_run_canceled(run)
    acme.delete_run(first)
    attempts = read_attempts(acme, ["modality", "routing"], failures_since=datetime.now(UTC) - timedelta(hours=1))
    assert {key: each.failures for key, each in attempts.items()} == {}
    assert read_module_failures(acme, ["modality", "routing"], 0, until=datetime.now(UTC)).failures == []
    assert scraped(metrics)["autoopt_failing_modules",] == 0
    assert "failed" not in autoopt("why", "acme", "routing", status=2)  # 2, for no Phoenix answers
    with visiting(home) as browser:
        assert "No run has failed" in text_of(browser.get("/activity"))
        assert "failed in a row" not in text_of(browser.get("/"))


def test_a_run_that_is_left_to_another_ends_no_row_of_failures(acme: dg.DagsterInstance) -> None:
    failed_run(acme, "acme", ["routing"])
    first = run_that_began(acme)
    lines: list[str] = []
    ended = run_in_process(defs, acme, "acme", ["routing"], {}, lines.append)
    assert (ended.outcomes, ended.causes) == ({}, {})
    assert ended.skipped
    assert f"run {first} of tenant acme began earlier" in ended.skipped
    assert lines[0] == f"routing: skipped: {ended.skipped}"
    assert acme.report_run_canceled(acme.get_run_by_id(first)) is not None  # ty: ignore[invalid-argument-type]
    failed_run(acme, "acme", ["routing"])
    failures = read_module_failures(acme, ["routing"], 0, until=datetime.now(UTC)).failures
    assert [failure.number for failure in failures] == [1, 2]
