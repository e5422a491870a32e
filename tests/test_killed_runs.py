"""Runs whose process is gone, and runs that come too late."""

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher.base import WorkerStatus
from dagster._core.storage.tags import SENSOR_NAME_TAG
from dagster._core.test_utils import create_run_for_test

from autoopt_pipeline.local.launcher import LocalRunLauncher
from autoopt_pipeline.orchestration.failures import WHOLE_RUN, causes_of
from autoopt_pipeline.orchestration.instance import open_instance
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.orchestration.steps import failing_the_step, refuse_repetition
from autoopt_pipeline.tenants.config import Retry

STEP_AND_RUN = """
import multiprocessing, os, time

def step():
    from autoopt_pipeline.orchestration.steps import end_with_the_run
    end_with_the_run()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("forkserver").Process(target=step).start()
    time.sleep(60)
"""


@pytest.fixture
def local(home: Path) -> Iterator[dg.DagsterInstance]:
    with open_instance(home) as opened:
        yield opened


def started_by(instance: dg.DagsterInstance, pid: int) -> dg.DagsterRun:
    run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
    instance.report_engine_event(f"Started process for run (pid: {pid}).", run, EngineEventData.in_process(pid))
    return run


def test_the_local_instance_knows_a_run_whose_process_was_killed(local: dg.DagsterInstance) -> None:
    process = subprocess.Popen(["sleep", "60"])
    run = started_by(local, process.pid)
    assert isinstance(local.run_launcher, LocalRunLauncher)
    assert local.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    process.kill()
    time.sleep(0.1)
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert local.run_launcher.check_run_worker_health(run).status is WorkerStatus.FAILED
    process.wait()
    found = local.run_launcher.check_run_worker_health(run)
    assert found.status is WorkerStatus.FAILED
    assert f"its process {process.pid}" in str(found.msg)


def test_a_run_that_does_not_say_its_process_is_left_alone(local: dg.DagsterInstance) -> None:
    run = create_run_for_test(local, status=dg.DagsterRunStatus.STARTED)
    assert local.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_another_process_of_the_same_number_is_not_the_runs(local: dg.DagsterInstance) -> None:
    run = create_run_for_test(local, status=dg.DagsterRunStatus.STARTED)
    event = dg.DagsterEvent(
        "ENGINE_EVENT", run.job_name, event_specific_data=EngineEventData.in_process(psutil.Process().pid)
    )
    before = psutil.Process().create_time() - 3600  # as after a restart of the machine
    local.handle_new_event(
        dg.EventLogEntry(None, "debug", "", run.run_id, timestamp=before, job_name=run.job_name, dagster_event=event)
    )
    assert local.run_launcher.check_run_worker_health(run).status is WorkerStatus.FAILED


def test_a_run_that_dagster_found_dead_says_what_dagster_found(instance: dg.DagsterInstance) -> None:
    run = create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED)
    instance.report_engine_event("Run execution process was terminated by signal 9 (SIGKILL).", run)
    instance.report_run_failed(run)
    assert causes_of(instance, run.run_id) == {WHOLE_RUN: "Run execution process was terminated by signal 9 (SIGKILL)."}


def test_a_step_ends_when_its_run_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(STEP_AND_RUN)
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert run.stdout
    step = psutil.Process(int(run.stdout.readline()))
    run.kill()
    run.wait()
    assert psutil.wait_procs([step], timeout=20)[1] == []


@dg.asset(name="routing", partitions_def=dg.DynamicPartitionsDefinition(name="tenants"))
def learnt(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    if "late" in context.run.tags:
        learn(context.instance)  # another run comes first
        with failing_the_step(context, Retry()):
            refuse_repetition(context, "routing")
    return dg.MaterializeResult(metadata={"window_end": dg.MetadataValue.timestamp(datetime.now(UTC))})


def learn(instance: dg.DagsterInstance, **tags: str) -> dg.ExecuteInProcessResult:
    register_tenant(instance, "acme")
    job = dg.Definitions(assets=[learnt]).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(partition_key="acme", instance=instance, tags=tags, raise_on_error=False)


def test_a_run_of_the_sensor_that_another_run_overtook_does_not_learn_the_same_again(
    instance: dg.DagsterInstance,
) -> None:
    assert learn(instance).success
    late = learn(instance, late="yes", **{SENSOR_NAME_TAG: "auto_optimization_sensor"})
    assert not late.success
    assert "has learnt from these traces after this one was launched" in causes_of(instance, late.run_id)["routing"]
    assert learn(instance, late="yes").success  # a person asked for it
