"""Materializations and observations of tenants' modules in Dagster's event log, as plain values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import islice, takewhile
from typing import Any

import dagster as dg

from autoopt_pipeline.timeline import Stretch

PAGE = 1000
"""Events that one query reads."""

EVENT_LOG_LAG = timedelta(seconds=10)
"""Events become visible in about the order of their storage ids, but not exactly: before one that is younger than this,
another may still appear."""


class EventKind(Enum):
    """A run reports an outcome as a materialization; everything else is reported as an observation."""

    MATERIALIZATION = "materialization"
    OBSERVATION = "observation"


@dataclass(frozen=True)
class ModuleEvent:
    """What was reported of a module at a moment (UTC). `values` are its metadata, without Dagster's types around them.

    `tenant` is None where the event has no partition, and `run_id` is empty where it was reported by no run.
    """

    storage_id: int
    at: datetime
    tenant: str | None
    module: str
    run_id: str
    values: Mapping[str, Any]


def newest_events(
    instance: dg.DagsterInstance,
    kind: EventKind,
    module: str,
    *,
    limit: int,
    tenants: Sequence[str] | None = None,
    since: datetime | None = None,
    before: datetime | None = None,
) -> Stretch[ModuleEvent]:
    """The newest events of a module, of these tenants or of all, newest first."""
    if tenants is not None and not tenants:
        return Stretch((), None)
    page = _fetch(
        instance,
        kind,
        dg.AssetRecordsFilter(
            dg.AssetKey(module),
            asset_partitions=tenants,
            after_timestamp=since.timestamp() if since else None,
            before_timestamp=before.timestamp() if before else None,
        ),
        limit=limit,
    )
    events = [event_of(module, record) for record in page.records]
    return Stretch(events, events[-1].at if page.has_more and events else None)


def read_events(
    instance: dg.DagsterInstance,
    kind: EventKind,
    module: str,
    *,
    tenants: Sequence[str] | None = None,
    since: datetime | None = None,
    after: int | None = None,
) -> Iterator[ModuleEvent]:
    """All events of a module since a moment and after a storage id, oldest first, a page at a time."""
    while True:
        wanted = dg.AssetRecordsFilter(
            dg.AssetKey(module),
            asset_partitions=tenants,
            after_timestamp=since.timestamp() if since else None,
            after_storage_id=after,
        )
        page = _fetch(instance, kind, wanted, limit=PAGE, ascending=True)
        yield from (event_of(module, record) for record in page.records)
        if not page.has_more or not page.records:
            return
        after = page.records[-1].storage_id


def read_page(
    instance: dg.DagsterInstance, kind: EventKind, module: str, *, after: int, until: datetime
) -> Iterator[ModuleEvent]:
    """The next events after a storage id, oldest first: no more than a page, and none that is younger than `until`."""
    events = islice(read_events(instance, kind, module, after=after), PAGE)
    return takewhile(lambda event: event.at <= until, events)


def latest_id(instance: dg.DagsterInstance, kind: EventKind, module: str) -> int:
    """The storage id of the module's newest event, 0 where it has none."""
    newest = newest_events(instance, kind, module, limit=1).items
    return newest[0].storage_id if newest else 0


def outcomes_of_run(instance: dg.DagsterInstance, run_id: str) -> dict[str, dict[str, Any]]:
    """The metadata of each module that a run has materialized."""
    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    events = [entry.asset_materialization for entry in entries if entry.asset_materialization]
    return {event.asset_key.to_user_string(): metadata_values(event) for event in events}


def metadata_values(event: dg.AssetMaterialization | dg.AssetObservation) -> dict[str, Any]:
    """The metadata of an event by name, without Dagster's types around the values."""
    return {name: value.value for name, value in event.metadata.items()}


def _fetch(
    instance: dg.DagsterInstance,
    kind: EventKind,
    wanted: dg.AssetRecordsFilter,
    *,
    limit: int,
    ascending: bool = False,
) -> dg.EventRecordsResult:
    if kind is EventKind.MATERIALIZATION:
        return instance.fetch_materializations(wanted, limit=limit, ascending=ascending)
    return instance.fetch_observations(wanted, limit=limit, ascending=ascending)


def event_of(module: str, record: dg.EventLogRecord) -> ModuleEvent:
    """What a record of Dagster's says."""
    event = record.asset_materialization or record.asset_observation
    return ModuleEvent(
        storage_id=record.storage_id,
        at=datetime.fromtimestamp(record.timestamp, UTC),
        tenant=event.partition if event else None,
        module=module,
        run_id=record.run_id,
        values=metadata_values(event) if event else {},
    )
