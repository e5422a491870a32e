"""Runs whose process is gone, and runs that come too late."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher.base import WorkerStatus
from dagster._core.storage.tags import SENSOR_NAME_TAG
from dagster._core.test_utils import create_run_for_test

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import PhoenixRefused
from autoopt_pipeline.launchers.local import LocalRunLauncher
from autoopt_pipeline.names import FAILED_TAG, PARTITION_TAG, SKIPPED_TAG, WINDOW_END_TAG
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.orchestration.step_errors import should_skip, translate_errors
from autoopt_pipeline.run_history.failures import WHOLE_RUN, causes_of
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.run_history.module_events import metadata_values
from autoopt_pipeline.run_history.outcomes import read_attempts
from autoopt_pipeline.scheduling.conditions import LostRun
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.tenants.config import Retry
from tests.support.command_line import autoopt

ROUTING = dg.AssetKey("routing")

STEP_AND_RUN = """
import multiprocessing, os, signal, sys, time

def step():
    from autoopt_pipeline.orchestration import step_errors
    signal.signal(signal.SIGTERM, getattr(signal, sys.argv[1]))
    step_errors.GRACE_SECONDS = float(sys.argv[2])
    step_errors.exit_with_parent()
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


@pytest.mark.parametrize(("handler", "grace"), [("SIG_DFL", "60"), ("SIG_IGN", "1")])
def test_a_step_ends_when_its_run_is_killed(handler: str, grace: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(STEP_AND_RUN)
    run = subprocess.Popen([sys.executable, str(script), handler, grace], stdout=subprocess.PIPE, text=True)
    assert run.stdout
    step = psutil.Process(int(run.stdout.readline()))
    run.kill()
    run.wait()
    assert psutil.wait_procs([step], timeout=20)[1] == []


PROMOTE_AND_DIE = """
import os, signal, sys
from autoopt_pipeline.cli.main import run
from autoopt_pipeline.traces import experiments

def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

experiments.publish_comparison = die
sys.argv = ["autoopt", "trigger", "--tenant-id", "acme", "--module", "routing"]
run()
"""


def test_what_a_run_had_promoted_before_it_was_killed_counts_and_is_not_searched_for_again(
    configured: Path, acme: datetime
) -> None:
    """It is killed between the promotion and the report, while it shows the comparison in Phoenix."""
    done = subprocess.run([sys.executable, "-c", PROMOTE_AND_DIE], cwd=configured, check=False)
    assert done.returncode == -signal.SIGKILL
    programs = Connections(load_settings()).artifacts("acme", "routing")
    version = programs.active()
    assert version
    with open_instance(configured) as opened:
        (run,) = opened.get_runs()
        opened.report_run_failed(run, "its process is gone")  # as the daemon does once it has looked

        said = autoopt("status", "acme"), autoopt("why", "acme", "routing")
        for told in said:
            assert version.version in told
            assert "last promoted" in " ".join(told.split())
            assert "the last was lost with its process; next attempt in" in " ".join(told.split())
            assert "never optimized" not in told
        facts = json.loads(autoopt("why", "acme", "routing", "--json"))
        assert (facts["last_run"]["verdict"], facts["last_run"]["version"]) == ("promoted", version.version)
        assert datetime.fromisoformat(facts["next_due"]) - datetime.now(UTC) < timedelta(seconds=10)
        score = facts["active_score"]

        time.sleep(6)
        say = autoopt("trigger", "--tenant-id", "acme", "--module", "routing")
        assert "routing: promoted, proven better" in say
        (outcome,) = opened.fetch_materializations(dg.AssetKey("routing"), limit=9).records
        assert outcome.asset_materialization
        metadata = metadata_values(outcome.asset_materialization)
        assert (metadata["version"], metadata["active_version"]) == (version.version, version.version)
        assert metadata["candidate_score"] == pytest.approx(score, rel=1e-3)
        assert metadata["lm_calls"] == 0
        assert metadata["window_end"] == datetime.fromisoformat(run.tags[WINDOW_END_TAG]).timestamp()
        assert f"run {run.run_id} reached this verdict before it was lost" in metadata["report"]
    assert len(programs.transitions()) == len(programs.versions()) == 1
    assert json.loads(autoopt("status", "acme", "--json"))["modules"][2]["failures"] == 0


def test_a_step_that_fails_says_so_and_one_that_is_killed_cannot(instance: dg.DagsterInstance) -> None:
    failed = learn(instance, fail="yes").dagster_run
    killed = create_run_for_test(instance, tags={PARTITION_TAG: "acme"}, asset_selection=frozenset([ROUTING]))
    instance.report_run_failed(killed, "its process is gone")
    runs = {run.run_id: run for run in instance.get_runs()}
    assert runs[failed.run_id].tags[FAILED_TAG] == "yes"
    assert FAILED_TAG not in runs[killed.run_id].tags
    attempts = read_attempts(instance, ["routing"], failures_since=datetime.now(UTC) - timedelta(hours=1))
    assert attempts["acme", "routing"].failures == 2
    lost = attempts["acme", "routing"].lost
    assert lost == LostRun(1, killed.run_id, None)


def test_a_run_that_is_ended_because_somebody_wants_it_is_not_taken_for_lost(instance: dg.DagsterInstance) -> None:
    ended = learn(instance, interrupted="on purpose").dagster_run
    taken = learn(instance, interrupted="by the machine").dagster_run
    runs = {run.run_id: run for run in instance.get_runs()}
    assert FAILED_TAG in runs[ended.run_id].tags
    assert FAILED_TAG not in runs[taken.run_id].tags


@dg.asset(name="routing", partitions_def=dg.DynamicPartitionsDefinition(name="tenants"), output_required=False)
def learnt(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    if "fail" in context.run.tags:
        with translate_errors(context, Retry()):
            raise PhoenixRefused("Phoenix is something else", "see what it is")
    if purpose := context.run.tags.get("interrupted"):
        if purpose == "on purpose":
            context.instance.report_run_canceling(context.run)
        with translate_errors(context, Retry()):
            raise dg.DagsterExecutionInterruptedError
    if "late" in context.run.tags:
        learn(context.instance)  # another run comes first
        with translate_errors(context, Retry()):
            if should_skip(context, "routing"):
                return
    yield dg.MaterializeResult(metadata={"window_end": dg.MetadataValue.timestamp(datetime.now(UTC))})


def learn(instance: dg.DagsterInstance, **tags: str) -> dg.ExecuteInProcessResult:
    register_tenant(instance, "acme")
    job = dg.Definitions(assets=[learnt]).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        partition_key="acme", instance=instance, tags=tags, asset_selection=[ROUTING], raise_on_error=False
    )


def test_a_run_of_the_sensor_that_another_run_overtook_does_not_learn_the_same_again(
    instance: dg.DagsterInstance,
) -> None:
    assert learn(instance).success
    late = learn(instance, late="yes", **{SENSOR_NAME_TAG: "auto_optimization_sensor"})
    assert late.success
    assert late.asset_materializations_for_node("routing") == []
    run = instance.get_run_by_id(late.run_id)
    assert run
    assert "has learnt from these traces after this one was launched" in run.tags[SKIPPED_TAG]
    assert learn(instance, late="yes").success  # a person asked for it
