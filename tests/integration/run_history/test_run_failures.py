"""Why a run failed where its code is not to blame: real runs whose processes die."""

import os
import signal
from pathlib import Path

import dagster as dg
import pytest

from autoopt_pipeline.run_history.failures import WHOLE_RUN, causes_of


@dg.op
def dies() -> None:
    os.kill(os.getpid(), int(os.environ["DIES_OF"]))


@dg.job(executor_def=dg.multiprocess_executor)
def dying() -> None:
    dies()


@dg.job(
    executor_def=dg.multiprocess_executor.configured({"start_method": {"forkserver": {"preload_modules": ["killed"]}}})
)
def orphaned() -> None:
    dies()


@pytest.fixture(autouse=True)
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps' processes find what is here, and a module that kills who imports it."""
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)


def causes(job: dg.JobDefinition, instance: dg.DagsterInstance) -> dict[str, str]:
    with dg.execute_job(dg.reconstructable(job), instance) as result:
        return causes_of(instance, result.run_id)


@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGKILL, "most likely for want of memory (OOMKilled)"), (signal.SIGSEGV, "signal 11 (SIGSEGV)")],
)
def test_a_module_whose_process_died_says_how(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, told: str
) -> None:
    monkeypatch.setenv("DIES_OF", str(int(number)))
    assert told in causes(dying, instance)["dies"]


def test_a_run_whose_processes_cannot_even_be_started_says_that_memory_ran_out(instance: dg.DagsterInstance) -> None:
    assert "most likely for want of memory (OOMKilled)" in causes(orphaned, instance)[WHOLE_RUN]
