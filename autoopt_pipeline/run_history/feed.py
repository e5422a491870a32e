"""What has happened since the last look: runs that ended, rollbacks, ticks of sensors. A look is bounded."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import dagster as dg
from pydantic import BaseModel, ConfigDict

from autoopt_pipeline.names import PARTITION_TAG, SKIPPED_TAG
from autoopt_pipeline.run_history.events import Event, ModuleFailed, ModuleSucceeded, RolledBack
from autoopt_pipeline.run_history.failures import FAILURES, causes_in
from autoopt_pipeline.run_history.outcomes import ROLLED_BACK, metadata_values
from autoopt_pipeline.run_history.runs import selected_modules
from autoopt_pipeline.run_history.ticks import finished_ticks, read_tick, sensor_states

SETTLING = timedelta(seconds=10)
"""Rows younger than this wait for the next look: others from before them may not be visible yet."""

_REMEMBERED = timedelta(minutes=10)
"""How long after its end a run is known to have been read: a tag that is added later makes it look new."""

RUNS_PER_LOOK = 300
"""Each failed one costs a query of 6 to 50 ms, and a tick may take 60 s."""

_EVENTS_PER_LOOK = 500
_TICKS_PER_LOOK = 50


class EndedRuns(BaseModel):
    """How far ended runs have been read: up to `after` (UTC), and `seen` are those that ended shortly before."""

    model_config = ConfigDict(frozen=True)

    after: datetime
    seen: dict[str, datetime] = {}


def read_ended_runs(
    instance: dg.DagsterInstance, modules: Collection[str], position: EndedRuns, *, until: datetime
) -> tuple[EndedRuns, Sequence[dg.RunRecord]]:
    """Runs of these modules for a tenant that succeeded or failed before `until`, oldest first, each once."""
    records = instance.get_run_records(
        dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE],
            updated_after=position.after - timedelta(microseconds=1),
            updated_before=until,
        ),
        limit=RUNS_PER_LOOK,
        order_by="update_timestamp",
        ascending=True,
    )
    forgotten = position.after - _REMEMBERED
    fresh = [r for r in records if r.dagster_run.run_id[:8] not in position.seen and ended_at(r) > forgotten]
    if not records:
        return position, []
    after = max(position.after, records[-1].update_timestamp.astimezone(UTC))
    seen = position.seen | {r.dagster_run.run_id[:8]: ended_at(r) for r in fresh}
    kept = {run: end for run, end in seen.items() if end > after - _REMEMBERED}
    ours = [
        record
        for record in fresh
        if PARTITION_TAG in record.dagster_run.tags and not selected_modules(record.dagster_run).isdisjoint(modules)
    ]
    return EndedRuns(after=after, seen=kept), ours


def ended_at(record: dg.RunRecord) -> datetime:
    if record.end_time:
        return datetime.fromtimestamp(record.end_time, UTC)
    return record.update_timestamp.astimezone(UTC)


def latest_id(fetch: Callable[..., dg.EventRecordsResult], module: str) -> int:
    """The storage id of the module's newest materialization or observation, 0 where it has none."""
    latest = fetch(dg.AssetKey(module), limit=1).records
    return latest[0].storage_id if latest else 0


def read_events(
    fetch: Callable[..., dg.EventRecordsResult], module: str, after: int, *, until: datetime
) -> Iterator[dg.EventLogRecord]:
    """Materializations or observations of a module with larger storage ids, oldest first, up to one that is younger."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(module), after_storage_id=after)
    records = fetch(wanted, limit=_EVENTS_PER_LOOK, ascending=True).records
    return takewhile(lambda record: record.timestamp <= until.timestamp(), records)


class Position(BaseModel):
    """How far all has been read: observations by storage id for each module, ticks by Unix time for each sensor."""

    model_config = ConfigDict(frozen=True)

    runs: EndedRuns
    observations: dict[str, int] = {}
    ticks: dict[str, float] = {}


@dataclass(frozen=True)
class Source:
    """Where news are read: for these modules and sensors, with links to the Dagster UI where its address is known."""

    instance: dg.DagsterInstance
    modules: Collection[str]
    sensors: Collection[str]
    ui_url: str | None = None

    def start(self, now: datetime) -> Position:
        """What happened before is no news."""
        return Position(
            runs=EndedRuns(after=now),
            observations={module: latest_id(self.instance.fetch_observations, module) for module in self.modules},
            ticks=dict.fromkeys(self.sensors, now.timestamp()),
        )

    def read(self, position: Position, *, now: datetime) -> tuple[Position, list[Event]]:
        runs, records = read_ended_runs(self.instance, self.modules, position.runs, until=now - SETTLING)
        events = [event for record in records for event in self._of_run(record)]
        observations, rollbacks = self._rollbacks(position, now)
        ticks, ticked = self._ticks(position, now)
        return Position(runs=runs, observations=observations, ticks=ticks), [*events, *rollbacks, *ticked]

    def _of_run(self, record: dg.RunRecord) -> list[Event]:
        run, at = record.dagster_run, ended_at(record)
        tenant = run.tags[PARTITION_TAG]
        modules = sorted(selected_modules(run).intersection(self.modules))
        if run.status is dg.DagsterRunStatus.SUCCESS and SKIPPED_TAG not in run.tags:
            return [ModuleSucceeded(at, tenant, module) for module in modules]
        kinds = {dg.DagsterEventType.ASSET_MATERIALIZATION, *FAILURES}
        ended = [r.event_log_entry for r in self.instance.get_records_for_run(run.run_id, of_type=kinds).records]
        succeeded = {e.asset_materialization.label for e in ended if e.asset_materialization}
        if run.status is dg.DagsterRunStatus.SUCCESS:
            return [ModuleSucceeded(at, tenant, module) for module in modules if module in succeeded]
        causes = causes_in(ended)
        # A module that was not begun, because another failed, has that cause.
        cause = next(iter(causes.values()), "the run failed without a word")
        return [
            ModuleSucceeded(at, tenant, module)
            if module in succeeded
            else ModuleFailed(
                at, tenant, module, run.run_id, causes.get(module, cause), self._url(f"runs/{run.run_id}")
            )
            for module in modules
        ]

    def _rollbacks(self, position: Position, now: datetime) -> tuple[dict[str, int], list[Event]]:
        fetch, read, events = self.instance.fetch_observations, {}, list[Event]()
        for module in self.modules:
            known = position.observations.get(module)
            read[module] = latest_id(fetch, module) if known is None else known
            for record in read_events(fetch, module, read[module], until=now - SETTLING):
                read[module] = record.storage_id
                observation = record.asset_observation
                if observation is None or observation.partition is None:
                    continue
                said = metadata_values(observation)
                if said.get("event") != ROLLED_BACK:
                    continue
                detail = f"{said.get('from') or 'baseline'} -> {said.get('to') or 'baseline'}: {said.get('reason', '')}"
                at = datetime.fromtimestamp(record.timestamp, UTC)
                url = self._url(f"assets/{module}?view=partitions")
                events.append(RolledBack(at, observation.partition, module, detail, url))
        return read, events

    def _ticks(self, position: Position, now: datetime) -> tuple[dict[str, float], list[Event]]:
        states = sensor_states(self.instance)
        read, events = {}, list[Event]()
        for sensor in self.sensors:
            read[sensor] = position.ticks.get(sensor, now.timestamp())
            if sensor in states:
                ticks = finished_ticks(self.instance, states[sensor], limit=_TICKS_PER_LOOK, after=read[sensor])
                events += [read_tick(tick) for tick in ticks]
                read[sensor] = max((tick.timestamp for tick in ticks), default=read[sensor])
        return read, events

    def _url(self, path: str) -> str | None:
        return f"{self.ui_url.rstrip('/')}/{path}" if self.ui_url else None
