"""Run launcher for one machine that fails runs whose process is gone. `dagster.yaml` names it.

Dagster's own launcher cannot detect that. A run that was killed together with the code server, or that a command
started, would block its tenant until `max_runtime_seconds`.
"""

import dagster as dg
import psutil
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

from autoopt_pipeline.run_history.workers import processes_of

_CLOCK_SECONDS = 60.0
"""Tolerance if the clock is set: how much later than the run's first event its process may appear to have started."""


class LocalRunLauncher(DefaultRunLauncher):
    """Extends `DefaultRunLauncher` with a check of the run's process, for instances whose runs are all on this machine.

    Every process that executes a run records its process id in the run's first events, whatever started the run.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return `FAILED` only if the process is certainly gone."""
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
