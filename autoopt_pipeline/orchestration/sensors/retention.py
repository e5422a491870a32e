"""Sensor that deletes old runs, but none on which the next decisions rest."""

import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.names import RETENTION_SENSOR
from autoopt_pipeline.orchestration.planner import failures_count_since
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.run_history.outcomes import runs_of_newest_outcomes
from autoopt_pipeline.run_history.runs import FAILED, finished_runs
from autoopt_pipeline.secrets import scrubbing_errors
from autoopt_pipeline.settings import Settings

_INTERVAL_SECONDS = 600
_SECONDS_PER_TICK = 20.0
"""Dagster ends a tick after 60 s. A run takes some 10 to 100 ms to delete, so there is room for 30,000 a day."""

_PAGE = 500


@dataclass(frozen=True)
class Sweep:
    """The number of deleted runs, and the creation time (UTC) after which to continue; None: all were checked."""

    deleted: int
    resume: datetime | None


def build_retention_sensor(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name=RETENTION_SENSOR,
        description=f"Deletes runs that ended more than {settings.run_retention_days} days ago, a few per tick. "
        "Keeps the newest outcome of each tenant's module, and failures that still count.",
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    @scrubbing_errors()
    def run_retention_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SkipReason:
        now = datetime.now(UTC)
        configs = []
        for entry in services.connect().configs.current().values():
            # A tenant with an unreadable configuration launches nothing, so its failures do not matter.
            with suppress(InvalidConfig):
                configs.append(entry.parse())
        sweep = delete_old_runs(
            context.instance,
            modules(),
            older_than=now - timedelta(days=settings.run_retention_days),
            failures_since=failures_count_since(configs, now=now),
            after=datetime.fromisoformat(context.cursor) if context.cursor else None,
        )
        context.update_cursor(sweep.resume.isoformat() if sweep.resume else "")
        return dg.SkipReason(f"{sweep.deleted} runs deleted")

    return run_retention_sensor


def delete_old_runs(
    instance: dg.DagsterInstance,
    modules: Collection[str],
    *,
    older_than: datetime,
    failures_since: datetime,
    after: datetime | None = None,
    seconds: float = _SECONDS_PER_TICK,
) -> Sweep:
    """Delete finished runs of these modules that were created between the two moments, the oldest first.

    It keeps runs with the newest materialization of any tenant's module, and failed ones since `failures_since`. It
    stops after about so many seconds. Events of no run stay: rollbacks, and the LM usage of failed attempts.
    """
    deadline = time.monotonic() + seconds
    kept: set[str] | None = None
    deleted = 0
    while True:
        page = finished_runs(instance, after=after, before=older_than, limit=_PAGE)
        for run in page:
            if time.monotonic() > deadline:
                return Sweep(deleted, after)
            after = run.created_at
            if not run.modules.intersection(modules):
                continue
            if run.status in FAILED and run.updated_at >= failures_since:
                continue
            if kept is None:
                kept = runs_of_newest_outcomes(instance, modules)
            if run.run_id not in kept:
                instance.delete_run(run.run_id)
                instance.compute_log_manager.delete_logs(prefix=[run.run_id])
                deleted += 1
        if len(page) < _PAGE:
            return Sweep(deleted, None)
