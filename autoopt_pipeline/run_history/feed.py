"""What has happened since the last look: runs that ended, rollbacks, ticks of sensors. A look is bounded."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import BaseModel, ConfigDict

from autoopt_pipeline.names import PARTITION_TAG, SKIPPED_TAG
from autoopt_pipeline.run_history.events import Event, ModuleFailed, ModuleSucceeded, RolledBack
from autoopt_pipeline.run_history.failures import FAILURES, causes_in
from autoopt_pipeline.run_history.module_events import EVENT_LOG_LAG, EventKind, latest_id, read_page
from autoopt_pipeline.run_history.outcomes import ROLLED_BACK
from autoopt_pipeline.run_history.runs import ended_at, selected_modules
from autoopt_pipeline.run_history.ticks import finished_ticks, read_tick, sensor_states

_REMEMBERED = timedelta(minutes=10)
"""How long after its end a run is known to have been read: a tag that is added later makes it look new."""

RUNS_PER_LOOK = 300
"""Each failed one costs a query of 6 to 50 ms, and a tick may take 60 s."""

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
            observations={m: latest_id(self.instance, EventKind.OBSERVATION, m) for m in self.modules},
            ticks=dict.fromkeys(self.sensors, now.timestamp()),
        )

    def read(self, position: Position, *, now: datetime) -> tuple[Position, list[Event]]:
        runs, records = read_ended_runs(self.instance, self.modules, position.runs, until=now - EVENT_LOG_LAG)
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
        read, events = {}, list[Event]()
        for module in self.modules:
            known = position.observations.get(module)
            read[module] = latest_id(self.instance, EventKind.OBSERVATION, module) if known is None else known
            page = read_page(
                self.instance, EventKind.OBSERVATION, module, after=read[module], until=now - EVENT_LOG_LAG
            )
            for event in page:
                read[module], values = event.storage_id, event.values
                if event.tenant is None or values.get("event") != ROLLED_BACK:
                    continue
                path = f"{values.get('from') or 'baseline'} -> {values.get('to') or 'baseline'}"
                detail, url = f"{path}: {values.get('reason', '')}", self._url(f"assets/{module}?view=partitions")
                events.append(RolledBack(event.at, event.tenant, module, detail, url))
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
