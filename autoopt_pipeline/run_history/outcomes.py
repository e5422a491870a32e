"""What Dagster's event log knows of earlier optimizations. The only place that reads it.

Look-ups are one per module, never one per tenant (0.4 s against 350 s with 10,000 tenants). For that, two calls
that Dagster does not declare public are needed; they stand in this file only, under a contract test.
"""

import threading
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from dagster import DagsterEventType
from dagster._core.storage.event_log.base import AssetEventSummaryRecord

from autoopt_pipeline.names import ATTEMPT_TAG, FAILED_TAG, PARTITION_TAG, WINDOW_END_TAG
from autoopt_pipeline.run_history.runs import selected_modules, unfinished_runs
from autoopt_pipeline.scheduling.annotation_counts import AnnotationsSeen
from autoopt_pipeline.scheduling.conditions import Attempts, LostRun, RunOutcome, believable
from autoopt_pipeline.scheduling.limits import Spending

ModuleKey = tuple[str, str]

ROLLED_BACK, ROLLOUT_FINISHED, SPENT = "rolled_back", "rollout_finished", "spent"
"""Kinds of observations: the rollout moved a tenant back, or ended without; a language model was asked
without an outcome, by an attempt that failed or by a person."""

ANNOTATION_TOTAL, ANNOTATION_MARKS = "annotation_total", "annotation_marks"
"""Metadata of a materialization that hold its `AnnotationsSeen`."""

_CHUNK = 1000

_read: dict[ModuleKey, tuple[Attempts, RunOutcome | None]] = {}
"""The newest outcomes that this process has read, by (tenant, module). An outcome never changes, and reading one takes
0.3 ms, so the sensor, which comes back every minute, reads each once. Its id and time tell it from any other's."""


def read_attempts(
    instance: dg.DagsterInstance,
    modules: Collection[str],
    *,
    failures_since: datetime,
    tenants: Collection[str] | None = None,
    begins: Mapping[str, datetime] | None = None,
) -> dict[ModuleKey, Attempts]:
    """What became of the runs of every (tenant, module) that had any, without moments that are still to come; with few
    `tenants`, only theirs are read. Of a tenant that `begins` at a moment, what ended before that does not count."""
    attempts: dict[ModuleKey, Attempts] = {}
    only = set(tenants) if tenants is not None and len(tenants) <= _CHUNK else None
    for module in modules:
        asset = dg.AssetKey(module)
        latest = instance.get_latest_storage_id_by_partition(asset, DagsterEventType.ASSET_MATERIALIZATION, only)
        finished_at = {
            record.storage_id: datetime.fromtimestamp(record.timestamp, UTC)
            for record in _summaries(instance, asset, list(latest.values()))
        }
        for tenant, storage_id in latest.items():
            if not _is_over(finished_at[storage_id], tenant, begins):
                attempts[tenant, module] = Attempts(_believed(finished_at[storage_id]), storage_id)
    _add_failures(instance, attempts, modules, failures_since, begins)
    for tenant, run_id in unfinished_runs(instance, modules).items():
        for module in modules:
            attempts[tenant, module] = replace(attempts.get((tenant, module), Attempts()), running=run_id)
    return attempts


def runs_of_newest_outcomes(instance: dg.DagsterInstance, modules: Collection[str]) -> set[str]:
    """The runs that hold the newest materialization of any (tenant, module): deleting one would delete the outcome."""
    found = set()
    for module in modules:
        asset = dg.AssetKey(module)
        latest = instance.get_latest_storage_id_by_partition(asset, DagsterEventType.ASSET_MATERIALIZATION)
        found |= {record.run_id for record in _summaries(instance, asset, list(latest.values())) if record.run_id}
    return found


def read_outcomes(instance: dg.DagsterInstance, attempts: Mapping[ModuleKey, Attempts]) -> dict[ModuleKey, RunOutcome]:
    """What the last optimization of each of these saw, from its materialization's metadata."""
    wanted = {
        key: Attempts(outcome_at=attempt.outcome_at, outcome_id=attempt.outcome_id)
        for key, attempt in attempts.items()
        if attempt.outcome_id is not None
    }
    by_module: dict[str, dict[int, str]] = {}
    for (tenant, module), attempt in wanted.items():
        if _read.get((tenant, module), (None, None))[0] != attempt and attempt.outcome_id is not None:
            by_module.setdefault(module, {})[attempt.outcome_id] = tenant
    for module, tenants in by_module.items():
        ids = sorted(tenants)
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(dg.AssetKey(module), storage_ids=chunk), limit=len(chunk)
            ).records
            for record in records:
                key = (tenants[record.storage_id], module)
                _read[key] = (wanted[key], _outcome(record))
    found = {key: _read[key] for key in wanted if key in _read}
    return {key: outcome for key, (attempt, outcome) in found.items() if outcome and attempt == wanted[key]}


def reason_of(instance: dg.DagsterInstance, module: str, outcome_id: int) -> str:
    """Why an outcome is what it is, in words; "" where it does not say."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(module), storage_ids=[outcome_id])
    records = instance.fetch_materializations(wanted, limit=1).records
    return str(metadata_values(records[0].asset_materialization).get("reason", "")) if records else ""


def metadata_values(event: dg.AssetMaterialization | dg.AssetObservation | None) -> dict[str, Any]:
    """What an event says, by name, without Dagster's types around it; nothing where there is none."""
    return {name: value.value for name, value in event.metadata.items()} if event else {}


def outcome_since(instance: dg.DagsterInstance, tenant: str, module: str, moment: datetime) -> str | None:
    """The run that came to this module's last outcome, where that was after `moment`."""
    wanted = dg.AssetRecordsFilter(dg.AssetKey(module), asset_partitions=[tenant])
    for record in instance.fetch_materializations(wanted, limit=1).records:
        at = _believed(_utc(record.timestamp))
        return record.run_id if at and at > moment and _outcome(record) else None
    return None


def report_spent(
    instance: dg.DagsterInstance, tenant: str, module: str, spent: Spending, *, reason: str, run_id: str | None = None
) -> None:
    """Enter what a run or a person spent without an outcome. It belongs to no run, so none takes it along."""
    metadata = {"event": SPENT, "reason": reason, "lm_calls": spent.lm_calls, "lm_tokens": spent.lm_tokens}
    metadata |= {"run_id": run_id} if run_id else {}
    instance.report_runless_asset_event(dg.AssetObservation(module, partition=tenant, metadata=metadata))


def read_spending(
    instance: dg.DagsterInstance, modules: Collection[str], *, since: datetime, tenants: Collection[str] | None = None
) -> dict[str, Spending]:
    """What tenants, or these only, have spent on language models since then, in attempts that have ended.

    Two queries per module, and a page of each for every thousand attempts that this process has not read before.
    """
    if tenants is not None and len(tenants) <= _CHUNK:
        tally = _Tally(since)
        return tally.read(instance, modules, tenants=sorted(tenants))
    with _tallying:
        tally = _tallies.get(instance.root_directory)
        if tally is None or tally.since != since:
            tally = _tallies[instance.root_directory] = _Tally(since)
        return tally.read(instance, modules)


@dataclass
class _Tally:
    """What was spent since a moment, and how far that has been read: the last storage id by module and event."""

    since: datetime
    reached: dict[tuple[str, str], int] = field(default_factory=dict)
    spent: dict[str, Spending] = field(default_factory=dict)

    def read(
        self, instance: dg.DagsterInstance, modules: Collection[str], *, tenants: list[str] | None = None
    ) -> dict[str, Spending]:
        """Read on, and return all that was spent."""
        settled = (datetime.now(UTC) - _SETTLING).timestamp()
        young: dict[str, Spending] = {}
        for module in modules:
            for fetch in (instance.fetch_materializations, instance.fetch_observations):
                place, into = (module, fetch.__name__), self.spent
                for record in _pages(fetch, module, tenants, since=self.since, after=self.reached.get(place)):
                    if record.timestamp > settled:
                        into = young  # read once more next time, with what may yet appear before it
                    _add_spending(into, record.asset_materialization or record.asset_observation)
                    if into is self.spent:
                        self.reached[place] = record.storage_id
        return {
            tenant: self.spent.get(tenant, Spending()) + young.get(tenant, Spending())
            for tenant in self.spent.keys() | young.keys()
        }


_SETTLING = timedelta(seconds=10)
"""Events become visible in about the order of their storage ids, but not exactly."""

_tallies: dict[str, _Tally] = {}
"""By instance. Reading an attempt takes 0.3 ms, and the sensor asks every minute what all have spent in the day."""

_tallying = threading.Lock()


def _pages(
    fetch: Callable[..., dg.EventRecordsResult],
    module: str,
    tenants: list[str] | None,
    *,
    since: datetime,
    after: int | None,
) -> Iterator[dg.EventLogRecord]:
    """Events since a moment and after a storage id, oldest first."""
    while True:
        wanted = dg.AssetRecordsFilter(
            dg.AssetKey(module), asset_partitions=tenants, after_timestamp=since.timestamp(), after_storage_id=after
        )
        page = fetch(wanted, limit=_CHUNK, ascending=True)
        yield from page.records
        if not page.has_more or not page.records:
            return
        after = page.records[-1].storage_id


def _add_spending(spent: dict[str, Spending], event: dg.AssetMaterialization | dg.AssetObservation | None) -> None:
    if event is None or event.partition is None:
        return

    def number(name: str) -> int:
        value = event.metadata.get(name)
        return value.value or 0 if isinstance(value, dg.IntMetadataValue) else 0

    one = Spending(number("lm_calls"), number("lm_tokens"))
    spent[event.partition] = spent.get(event.partition, Spending()) + one


def _outcome(record: dg.EventLogRecord) -> RunOutcome | None:
    """None when the materialization was reported by hand and says nothing of traces."""
    materialization = record.asset_materialization
    metadata = materialization.metadata if materialization else {}
    if "window_end" not in metadata:
        return None

    def total(name: str) -> int | None:
        return int(str(metadata[name].value)) if name in metadata else None

    return RunOutcome(
        window_end=datetime.fromtimestamp(float(str(metadata["window_end"].value)), UTC),
        annotations=_annotations_seen(total(ANNOTATION_TOTAL), metadata.get(ANNOTATION_MARKS)),
        verdict=str(metadata["verdict"].value) if "verdict" in metadata else "",
        decisions=total("spans_read") or 0,
        labels=_labels(metadata.get("labels")),
        version=str(metadata["version"].value) if "version" in metadata else None,
    )


def _annotations_seen(total: int | None, marks: dg.MetadataValue | None) -> AnnotationsSeen | None:
    if total is None:
        return None
    times = marks.value if isinstance(marks, dg.JsonMetadataValue) and isinstance(marks.value, list) else []
    return AnnotationsSeen(total, array("q", (int(str(time)) for time in times)))


def _labels(value: dg.MetadataValue | None) -> frozenset[str] | None:
    return frozenset(map(str, value.value)) if isinstance(value, dg.JsonMetadataValue) and value.value else None


def _summaries(
    instance: dg.DagsterInstance, asset: dg.AssetKey, storage_ids: list[int]
) -> Iterator[AssetEventSummaryRecord]:
    for start in range(0, len(storage_ids), _CHUNK):
        yield from instance.event_log_storage.get_asset_event_summary_records(
            DagsterEventType.ASSET_MATERIALIZATION,
            asset_key=asset,
            storage_ids=storage_ids[start : start + _CHUNK],
        )


def _is_over(moment: datetime, tenant: str, begins: Mapping[str, datetime] | None) -> bool:
    """Whether something belongs to an earlier tenant of that name."""
    return bool(begins and tenant in begins and moment < begins[tenant])


def _add_failures(
    instance: dg.DagsterInstance,
    attempts: dict[ModuleKey, Attempts],
    modules: Collection[str],
    since: datetime,
    begins: Mapping[str, datetime] | None,
) -> None:
    """Count failed and cancelled runs after each module's last outcome. One query."""
    records = instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED], updated_after=since),
        ascending=True,
    )
    for record in records:
        run = record.dagster_run
        tenant = run.tags.get(PARTITION_TAG)
        if tenant is None:
            continue
        selected = selected_modules(run)
        ended = _utc(record.end_time or record.update_timestamp)
        if _is_over(ended, tenant, begins):
            continue
        began = _utc(record.start_time) if record.start_time else record.create_timestamp.astimezone(UTC)
        for module in selected.intersection(modules):
            known = attempts.get((tenant, module), Attempts())
            # Where one module of a run failed, the others have their outcome all the same.
            if known.outcome_at and known.outcome_at >= began:
                continue
            attempts[tenant, module] = replace(
                known,
                failures=known.failures + 1,
                last_failure_at=_believed(ended),
                last_failed_run=run.run_id,
                lost=_lost(run, known.lost),
            )


def _lost(run: dg.DagsterRun, before: LostRun | None) -> LostRun | None:
    """The failed run as a lost one, after `before`; None where it says itself that it failed, or was cancelled."""
    if run.status is not dg.DagsterRunStatus.FAILURE or FAILED_TAG in run.tags:
        return None
    attempt = run.tags.get(ATTEMPT_TAG) or run.root_run_id or run.run_id
    window_end = None
    with suppress(KeyError, ValueError):  # whoever launches a run may write what they like
        window_end = datetime.fromisoformat(run.tags[WINDOW_END_TAG]).astimezone(UTC)
    return LostRun(before.times + 1 if before else 1, attempt, window_end)


def _believed(moment: datetime) -> datetime | None:
    return moment if believable(moment, datetime.now(UTC)) else None


def _utc(moment: float | datetime) -> datetime:
    if isinstance(moment, datetime):
        return moment.astimezone(UTC)
    return datetime.fromtimestamp(moment, UTC)


def failure_horizon(longest_interval: timedelta, longest_backoff: timedelta) -> timedelta:
    """How far back failures are looked up: long enough for the longest wait to be reached, and never under a day.

    Run keys hold the hour, so a failure of the same hour must always be seen.
    """
    return 12 * max(longest_interval, longest_backoff)
