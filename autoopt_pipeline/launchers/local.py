"""Run launcher for processes of this machine, which fails runs whose process is gone. `dagster.yaml` names it.

Dagster's own launcher cannot do that: a run whose process was killed together with the code server, or that a command
executed in its own process, would block its tenant until `max_runtime_seconds`.
"""

import dagster as dg
import psutil
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from autoopt_pipeline.run_history.workers import processes_of

_CLOCK_SECONDS = 60.0
"""How much later than its first event a process may seem to have begun, because a clock may be set meanwhile."""


class LocalRunLauncher(DefaultRunLauncher):
    """`DefaultRunLauncher` that checks whether a run's process lives. All runs have to be on this machine."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """`FAILED` only where the process is certainly gone."""
        for pid, since in processes_of(self._instance, run.run_id):
            if not _lives(pid, began_before=since.timestamp()):
                return CheckRunHealthResult(
                    WorkerStatus.FAILED,
                    f"its process {pid}, begun at {since:%Y-%m-%d %H:%M:%S} UTC, is gone: "
                    "it was killed, or the machine was restarted",
                )
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def _lives(pid: int, *, began_before: float) -> bool:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.create_time() <= began_before + _CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
