"""Incremental readers of Dagster's event log: runs that ended, and events of assets. Every read is bounded.

A reader continues after the storage id that its caller remembers.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Literal

import dagster as dg

from autoopt_pipeline.names import PARTITION_TAG
from autoopt_pipeline.run_history.runs import selected_modules

SETTLING = timedelta(seconds=10)
"""Younger events wait for the next read, because an event with a smaller id may still become visible."""

EVENTS_PER_READ = 1000

RunEnd = Literal[dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE]


@dataclass(frozen=True)
class EndedRun:
    """A run of a tenant's modules that succeeded or failed, with the event that says so."""

    record: dg.RunRecord
    event: dg.EventLogEntry

    @property
    def run_id(self) -> str:
        return self.record.dagster_run.run_id

    @property
    def tenant(self) -> str:
        return self.record.dagster_run.tags[PARTITION_TAG]

    @property
    def modules(self) -> set[str]:
        return selected_modules(self.record.dagster_run)

    @property
    def ended(self) -> datetime:
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
    page = instance.fetch_run_status_changes(
        dg.RunStatusChangeRecordsFilter(end, after_storage_id=after), limit=EVENTS_PER_READ, ascending=not newest
    )
    records = list(takewhile(_before(until), sorted(page.records, key=lambda record: record.storage_id)))
    events = {record.run_id: record.event_log_entry for record in records}
    ended = instance.get_run_records(dg.RunsFilter(run_ids=list(events))) if events else []
    runs = [
        EndedRun(record, events[record.dagster_run.run_id])
        for record in ended
        if PARTITION_TAG in record.dagster_run.tags and not selected_modules(record.dagster_run).isdisjoint(modules)
    ]
    runs.sort(key=lambda run: run.event.timestamp)
    return EndedRuns(runs, records[-1].storage_id if records else after, len(page.records) == EVENTS_PER_READ)


def latest_id(fetch: Callable[..., dg.EventRecordsResult], events: dg.AssetKey | dg.DagsterEventType) -> int:
    """The storage id of the newest event of an asset, or of a type, 0 where there is none."""
    latest = fetch(events, limit=1).records
    return latest[0].storage_id if latest else 0


def read_events(
    fetch: Callable[..., dg.EventRecordsResult], module: str, after: int, *, until: datetime
) -> Iterator[dg.EventLogRecord]:
    """A module's materializations or observations, oldest first."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(module), after_storage_id=after)
    return takewhile(_before(until), fetch(wanted, limit=EVENTS_PER_READ, ascending=True).records)


def _before(until: datetime) -> Callable[[dg.EventLogRecord], bool]:
    return lambda record: record.timestamp <= until.timestamp()
