"""Which runs of tenants' modules are queued or under way."""

from collections.abc import Collection
from datetime import UTC, datetime

import dagster as dg

from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.names import OPTIMIZE_JOB, PARTITION_TAG

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def selected_modules(run: dg.DagsterRun) -> set[str]:
    """The assets that a run materializes, by name. Runs of anything else have none."""
    if run.asset_selection is None and run.job_name == OPTIMIZE_JOB:
        return set(modules())
    return {key.to_user_string() for key in run.asset_selection or ()}


def unfinished_runs(instance: dg.DagsterInstance, of: Collection[str]) -> dict[str, str]:
    """Tenants with a run of any of these modules that is queued or under way, with that run's id. One query."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return {
        run.tags[PARTITION_TAG]: run.run_id
        for run in runs
        if PARTITION_TAG in run.tags and selected_modules(run).intersection(of)
    }


def ended_at(record: dg.RunRecord) -> datetime:
    if record.end_time:
        return datetime.fromtimestamp(record.end_time, UTC)
    return record.update_timestamp.astimezone(UTC)
