"""Run launcher for one machine that fails runs whose process is gone. `dagster.yaml` names it.

Dagster's own launcher cannot detect that. A run that was killed together with the code server, or that a command
started, would block its tenant until `max_runtime_seconds`.
"""

from datetime import UTC, datetime

import dagster as dg
import psutil
from dagster import DagsterEventType
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

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
        for entry in self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT):
            event = entry.dagster_event
            pid = event.engine_event_data.metadata.get("pid") if event else None
            if pid and not _lives(int(str(pid.value)), began_before=entry.timestamp):
                since = datetime.fromtimestamp(entry.timestamp, UTC)
                return CheckRunHealthResult(
                    WorkerStatus.FAILED,
                    f"its process {pid.value}, begun at {since:%Y-%m-%d %H:%M:%S} UTC, is gone: "
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
