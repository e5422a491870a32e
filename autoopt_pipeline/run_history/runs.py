"""Runs of tenants' modules: those that are queued or under way, and those that have ended."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from dagster._core.storage.tags import ROOT_RUN_ID_TAG

from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.names import ATTEMPT_TAG, OPTIMIZE_JOB, PARTITION_TAG

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

FAILED = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


@dataclass(frozen=True)
class RunSummary:
    """A run with the modules that it materializes. Times are in UTC, and `ended_at` of a run that has not ended is its
    last update. `tenant` is None where the run has no partition."""

    run: dg.DagsterRun
    tenant: str | None
    modules: frozenset[str]
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    ended_at: datetime

    @classmethod
    def of(cls, record: dg.RunRecord) -> "RunSummary":
        return cls(
            run=record.dagster_run,
            tenant=record.dagster_run.tags.get(PARTITION_TAG),
            modules=frozenset(selected_modules(record.dagster_run)),
            created_at=record.create_timestamp.astimezone(UTC),
            started_at=datetime.fromtimestamp(record.start_time, UTC) if record.start_time else None,
            updated_at=record.update_timestamp.astimezone(UTC),
            ended_at=ended_at(record),
        )

    @property
    def run_id(self) -> str:
        return self.run.run_id

    @property
    def status(self) -> dg.DagsterRunStatus:
        return self.run.status

    @property
    def began_at(self) -> datetime:
        """When it was created, where no process of it has started."""
        return self.started_at or self.created_at

    @property
    def tags(self) -> Mapping[str, str]:
        return self.run.tags


def selected_modules(run: dg.DagsterRun) -> set[str]:
    """The assets that a run materializes, by name. Runs of anything else have none."""
    if run.asset_selection is None and run.job_name == OPTIMIZE_JOB:
        return set(modules())
    return {key.to_user_string() for key in run.asset_selection or ()}


def ended_at(record: dg.RunRecord) -> datetime:
    if record.end_time:
        return datetime.fromtimestamp(record.end_time, UTC)
    return record.update_timestamp.astimezone(UTC)


def find_run(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun | None:
    """None where the run was deleted, or is of another instance."""
    return instance.get_run_by_id(run_id)


def created_at(instance: dg.DagsterInstance, run_id: str) -> datetime | None:
    """When a run was created (UTC); None where it was deleted."""
    record = instance.get_run_record_by_id(run_id)
    return record.create_timestamp.astimezone(UTC) if record else None


def unfinished_runs(instance: dg.DagsterInstance, of: Collection[str]) -> dict[str, str]:
    """Tenants with a run of any of these modules that is queued or under way, with that run's id. One query."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return {
        run.tags[PARTITION_TAG]: run.run_id
        for run in runs
        if PARTITION_TAG in run.tags and selected_modules(run).intersection(of)
    }


def executing_runs(instance: dg.DagsterInstance, tenant: str) -> list[RunSummary]:
    """The tenant's runs that a process executes now."""
    statuses = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    return _read(instance, dg.RunsFilter(tags={PARTITION_TAG: tenant}, statuses=statuses))


def runs_of_attempt(instance: dg.DagsterInstance, attempt: str) -> frozenset[str]:
    """The run that began an attempt, and all that took up its work because it was lost."""
    runs = [
        run.run_id
        for tag in (ATTEMPT_TAG, ROOT_RUN_ID_TAG)
        for run in instance.get_runs(dg.RunsFilter(tags={tag: attempt}))
    ]
    return frozenset({attempt, *runs})


def failed_runs(
    instance: dg.DagsterInstance, *, since: datetime | None, tenants: Sequence[str] | None = None
) -> list[RunSummary]:
    """Runs that failed or were cancelled since a moment, all or those of some tenants, the oldest first."""
    tags = None if tenants is None else {PARTITION_TAG: list(tenants)}
    return _read(instance, dg.RunsFilter(statuses=FAILED, updated_after=since, tags=tags), ascending=True)


def latest_runs(
    instance: dg.DagsterInstance,
    statuses: Sequence[dg.DagsterRunStatus],
    *,
    tenants: Sequence[str] | None,
    limit: int,
) -> list[RunSummary]:
    """The runs of these tenants, or of all, that changed last, newest first: at most `limit`."""
    if tenants is not None and not tenants:
        return []
    wanted = dg.RunsFilter(statuses=statuses, tags={} if tenants is None else {PARTITION_TAG: list(tenants)})
    return [run for run in _read(instance, wanted, limit=limit, order_by="update_timestamp") if run.tenant]


def runs_created(instance: dg.DagsterInstance, *, after: datetime) -> list[RunSummary]:
    """All runs that were created after a moment, the oldest first."""
    return _read(instance, dg.RunsFilter(created_after=after), ascending=True)


def finished_runs(
    instance: dg.DagsterInstance, *, after: datetime | None, before: datetime, limit: int
) -> list[RunSummary]:
    """The oldest runs that have ended, of those that were created between two moments."""
    statuses = [dg.DagsterRunStatus.SUCCESS, *FAILED]
    wanted = dg.RunsFilter(statuses=statuses, created_after=after, created_before=before)
    return _read(instance, wanted, limit=limit, ascending=True)


def runs_by_id(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> list[RunSummary]:
    """Those of these runs that were not deleted. One query."""
    return _read(instance, dg.RunsFilter(run_ids=run_ids)) if run_ids else []


def _read(instance: dg.DagsterInstance, wanted: dg.RunsFilter, **order: Any) -> list[RunSummary]:
    return [RunSummary.of(record) for record in instance.get_run_records(wanted, **order)]


def read_log(
    instance: dg.DagsterInstance, run_id: str, cursor: str | None
) -> tuple[list[dg.EventLogEntry], str | None]:
    """What a run has logged since a cursor, and the cursor after that."""
    page = instance.get_records_for_run(run_id, cursor)
    return [record.event_log_entry for record in page.records], page.cursor
