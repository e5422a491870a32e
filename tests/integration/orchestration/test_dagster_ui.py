"""Dagster's own faces on a real webserver and daemon: a backfill of tenants by mouse in Chromium, and by command."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, send_sample_traffic
from autoopt_pipeline.devtools.stack import Stack, copy_instance, start_dagster_dev
from autoopt_pipeline.names import OPTIMIZE_JOB, PARTITION_TAG
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.run_history.runs import selected_modules
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix
from tests.support.browsing import chromium, click

BIN = Path(sys.executable).parent
RUNS_END = 240
"""Seconds in which a few runs have started and ended, on a machine that has other things to do."""

ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@dataclass
class Face:
    """A running webserver with its daemon; `tenants` have little traffic, and the last one none at all."""

    url: str
    stack: Stack
    tenants: list[str]

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            env={**os.environ, **self.stack.env},
            cwd=self.stack.home,
            capture_output=True,
            text=True,
            check=False,
        )

    def wait_for_runs(self, count: int, tags: dict[str, str]) -> dict[str, dg.DagsterRun]:
        """That many runs with these tags, by tenant, when all have ended."""
        deadline = time.monotonic() + RUNS_END
        with open_instance(self.stack.home) as instance:
            while True:
                runs = instance.get_runs(dg.RunsFilter(tags=tags))
                if len(runs) == count and all(run.status in ENDED for run in runs):
                    return {run.tags[PARTITION_TAG]: run for run in runs}
                assert time.monotonic() < deadline, [(run.tags, run.status) for run in runs]
                time.sleep(1)


@pytest.fixture(scope="module")
def face(phoenix: Phoenix, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Face]:
    home = tmp_path_factory.mktemp("ui")
    copy_instance(home)
    # A sensor that launches runs of its own would only be in the way.
    stack = Stack(home, phoenix.endpoint, {"AUTOOPT_LM": "stand-in", "AUTOOPT_SENSOR_INTERVAL_SECONDS": "86400"})
    store = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")
    sample = SAMPLE_TENANTS[0]
    tenants = [f"ui-{name}-{os.getpid()}" for name in ("one", "two", "untraced")]
    end = datetime.now(UTC)
    for tenant in tenants[:2]:
        named = replace(sample, tenant_id=tenant)
        send_sample_traffic(phoenix, named, 30, start=end - timedelta(hours=2), end=end - timedelta(hours=1), seed=1)
    for tenant in tenants:
        write_config(store, RoutingConfigUnified(tenant_id=tenant, enable_auto_optimization=False))
        with open_instance(home) as instance:
            register_tenant(instance, tenant)
    with Processes(home / "logs") as processes:
        yield Face(start_dagster_dev(processes, stack, free_port()), stack, tenants)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as chrome:
        yield chrome


def test_a_backfill_by_mouse_of_three_tenants_finishes_two_when_one_fails(
    face: Face, browser: webdriver.Chrome
) -> None:
    browser.get(f"{face.url}/assets/modality")
    everyone = "//button[normalize-space()='All']"
    for _ in range(20):
        if browser.find_elements(By.XPATH, everyone):
            break
        click(browser, "//button[contains(., 'Materialize')]")  # lost before the page knows the partitions
        time.sleep(2)
    click(browser, everyone)
    click(browser, "//button[contains(., 'Launch backfill') and not(@disabled)]")
    runs = face.wait_for_runs(3, {})
    assert {run.asset_selection for run in runs.values()} == {frozenset({dg.AssetKey("modality")})}
    assert {tenant: run.status.value for tenant, run in runs.items()} == {
        face.tenants[0]: "SUCCESS",
        face.tenants[1]: "SUCCESS",
        face.tenants[2]: "FAILURE",
    }


def test_a_backfill_by_command_takes_the_tenants_that_it_names(face: Face) -> None:
    named = face.tenants[0]
    words = ["job", "backfill", "-j", OPTIMIZE_JOB, "-w", "workspace.yaml", "--partitions", named, "--noprompt"]
    done = face.command("dagster", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    with open_instance(face.stack.home) as instance:
        (run,) = instance.get_runs(dg.RunsFilter(job_name=OPTIMIZE_JOB))
        assert run.tags[PARTITION_TAG] == named
        assert selected_modules(run) == {"modality", "routing", "cross_modal", "workflow", "unified"}
        instance.run_coordinator.cancel_run(run.run_id)


def test_a_backfill_over_graphql_of_a_tenant_added_a_second_ago(face: Face) -> None:
    tenant = f"ui-late-{os.getpid()}"
    added = face.command("autoopt", "tenants", "add", tenant)
    assert added.returncode == 0, added.stderr
    params = {"assetSelection": [{"path": ["modality"]}], "partitionNames": [tenant], "tags": [], "fromFailure": False}
    answer = httpx.post(
        f"{face.url}/graphql",
        json={
            "query": "mutation($p:LaunchBackfillParams!){launchPartitionBackfill(backfillParams:$p){"
            "__typename ...on LaunchBackfillSuccess{backfillId}}}",
            "variables": {"p": params},
        },
        timeout=60,
    ).json()
    backfill = answer["data"]["launchPartitionBackfill"]["backfillId"]
    (run,) = face.wait_for_runs(1, {"dagster/backfill": backfill}).values()
    assert run.tags[PARTITION_TAG] == tenant
    assert run.status is dg.DagsterRunStatus.FAILURE  # it has no traces yet
    assert "no project" in face.command("autoopt", "why", tenant, "modality").stdout
