"""Tenants' runs that succeeded or failed, read from Dagster's event log a bounded number at a time.

A reader continues after the storage id that its caller remembers.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Literal

import dagster as dg

from autoopt_pipeline.run_history.module_events import PAGE
from autoopt_pipeline.run_history.runs import RunSummary, runs_by_id

RunEnd = Literal[dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE]


@dataclass(frozen=True)
class EndedRun:
    """A tenant's run of modules that succeeded or failed, with the event that reports it."""

    tenant: str
    run: RunSummary
    event: dg.EventLogEntry

    @property
    def run_id(self) -> str:
        return self.run.run_id

    @property
    def ended_at(self) -> datetime:
        return datetime.fromtimestamp(self.event.timestamp, UTC)


@dataclass(frozen=True)
class EndedRuns:
    """One read. `after` is where the next one continues; `full` means that more events than these were waiting."""

    runs: list[EndedRun]
    after: int
    full: bool


def read_ended_runs(
    instance: dg.DagsterInstance,
    modules: Collection[str],
    end: RunEnd,
    after: int,
    *,
    until: datetime,
    newest: bool = False,
) -> EndedRuns:
    """Tenants' runs of these modules that succeeded or failed, oldest first.

    Where too many are waiting, the oldest are read, or the `newest` instead.
    """
    wanted = dg.RunStatusChangeRecordsFilter(end, after_storage_id=after)
    page = instance.fetch_run_status_changes(wanted, limit=PAGE, ascending=not newest)
    oldest_first = sorted(page.records, key=lambda record: record.storage_id)
    records = list(takewhile(lambda record: record.timestamp <= until.timestamp(), oldest_first))
    events = {record.run_id: record.event_log_entry for record in records}
    runs = [
        EndedRun(run.tenant, run, events[run.run_id])
        for run in runs_by_id(instance, list(events))
        if run.tenant is not None and not run.modules.isdisjoint(modules)
    ]
    runs.sort(key=lambda run: run.event.timestamp)
    return EndedRuns(runs, records[-1].storage_id if records else after, len(page.records) == PAGE)


def latest_end(instance: dg.DagsterInstance, end: RunEnd) -> int:
    """The storage id of the newest event of the type, 0 where there is none."""
    newest = instance.fetch_run_status_changes(end, limit=1).records
    return newest[0].storage_id if newest else 0
