"""What came of earlier optimizations, from Dagster's event log.

There is one query per module, never one per tenant (0.4 s against 350 s with 10,000 tenants). That needs two calls
that Dagster does not declare public. They stand in this file only, under a contract test.
"""

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice

import dagster as dg
from dagster import DagsterEventType
from dagster._core.storage.event_log.base import AssetEventSummaryRecord

from autoopt_pipeline.names import ATTEMPT_TAG, FAILED_TAG, WINDOW_END_TAG
from autoopt_pipeline.run_history.module_events import EventKind, ModuleEvent, newest_events
from autoopt_pipeline.run_history.runs import RunSummary, failed_runs, unfinished_runs
from autoopt_pipeline.run_history.stored_events import events_by_id, times_by_id
from autoopt_pipeline.scheduling.annotation_counts import AnnotationsSeen
from autoopt_pipeline.scheduling.conditions import Attempts, LostRun, RunOutcome, believable

ModuleKey = tuple[str, str]

ROLLED_BACK, ROLLOUT_FINISHED, SPENT = "rolled_back", "rollout_finished", "spent"
QUALITY_FELL, FALL_EXPLAINED = "quality_fell", "fall_explained"
"""Kinds of observations: a rollout moved a tenant back, or finished without; a failed attempt or a person used a
language model without an outcome; what serves does worse than before."""

ANNOTATION_TOTAL, ANNOTATION_MARKS = "annotation_total", "annotation_marks"
"""Metadata of a materialization that hold its `AnnotationsSeen`."""

REVIEWS_NEEDED = "reviews_needed"
"""Metadata of a materialization that awaits reviews: after how many more a decision is possible at the soonest."""

MODELS = "models"
"""Metadata of a materialization: the language models that the run could ask, the tenant's own first."""

COSTS = "costs"
"""Metadata of a materialization that holds what a decision costs, by program."""

ESTIMATED = "estimated_"
"""Begins the names of metadata with what a search was expected to use: `estimated_lm_calls` and others."""

_CHUNK = 1000

_outcome_cache: dict[ModuleKey, tuple[Attempts, RunOutcome | None]] = {}
"""The newest outcomes that this process has read, by (tenant, module). An outcome never changes, and reading one takes
0.05 ms, so the sensor, which runs every minute, reads most only once. The id and the time identify an outcome."""

_MOST_CACHED = 50_000
"""One takes a kilobyte of memory."""


@dataclass(frozen=True)
class AttemptIds:
    """What identifies the attempts of tenants' modules. It is read of a whole fleet, where few of them are looked into.

    `outcomes` holds the storage ids of the newest outcomes, by module and tenant; `failures` the failed and cancelled
    runs by tenant, the oldest first; `running` the run that is under way, by tenant.
    """

    outcomes: Mapping[str, Mapping[str, int]]
    failures: Mapping[str, Sequence[RunSummary]]
    running: Mapping[str, str]

    def mark(self, tenant: str) -> tuple[int | str | None, ...]:
        """Equal as long as nothing has become of any run of the tenant."""
        return (
            *[ids.get(tenant) for ids in self.outcomes.values()],
            self.running.get(tenant),
            *[run.run_id for run in self.failures.get(tenant, ())],
        )


def read_attempt_ids(
    instance: dg.DagsterInstance,
    modules: Collection[str],
    *,
    failures_since: datetime,
    tenants: Collection[str] | None = None,
) -> AttemptIds:
    """Read the ids of all tenants' attempts, or only those of few `tenants`. One query per module, and two of runs."""
    only = set(tenants) if tenants is not None and len(tenants) <= _CHUNK else None
    kind = DagsterEventType.ASSET_MATERIALIZATION
    outcomes = {
        module: instance.get_latest_storage_id_by_partition(dg.AssetKey(module), kind, only) for module in modules
    }
    failures: dict[str, list[RunSummary]] = {}
    for run in failed_runs(instance, since=failures_since):
        if run.tenant is not None:
            failures.setdefault(run.tenant, []).append(run)
    return AttemptIds(outcomes, failures, unfinished_runs(instance, modules))


def attempts_by_ids(
    instance: dg.DagsterInstance,
    ids: AttemptIds,
    *,
    tenants: Collection[str] | None = None,
    begins: Mapping[str, datetime] | None = None,
) -> dict[ModuleKey, Attempts]:
    """What became of the runs of these tenants, or of all, as in `read_attempts`."""
    attempts: dict[ModuleKey, Attempts] = {}
    for module, newest in ids.outcomes.items():
        known = newest if tenants is None else {tenant: newest[tenant] for tenant in tenants if tenant in newest}
        ended = times_by_id(instance, module, list(known.values()))
        for tenant, storage_id in known.items():
            if storage_id in ended and not _is_over(ended[storage_id], tenant, begins):
                attempts[tenant, module] = Attempts(_believed(ended[storage_id]), storage_id)
    for tenant in ids.failures if tenants is None else tenants:
        _add_failures(attempts, ids, tenant, begins)
    for tenant in ids.running if tenants is None else tenants:
        if run_id := ids.running.get(tenant):
            for module in ids.outcomes:
                attempts[tenant, module] = replace(attempts.get((tenant, module), Attempts()), running=run_id)
    return attempts


def read_attempts(
    instance: dg.DagsterInstance,
    modules: Collection[str],
    *,
    failures_since: datetime,
    tenants: Collection[str] | None = None,
    begins: Mapping[str, datetime] | None = None,
) -> dict[ModuleKey, Attempts]:
    """What became of the runs of every (tenant, module) that had any, without moments that lie in the future.

    With few `tenants`, only theirs are read. What ended before a tenant's moment in `begins` does not count.
    """
    ids = read_attempt_ids(instance, modules, failures_since=failures_since, tenants=tenants)
    return attempts_by_ids(instance, ids, begins=begins)


def _newest_outcomes(
    instance: dg.DagsterInstance, modules: Collection[str], only: set[str]
) -> dict[ModuleKey, datetime]:
    """When each (tenant, module) of these tenants had its newest outcome."""
    newest = {}
    for module in modules:
        asset = dg.AssetKey(module)
        latest = instance.get_latest_storage_id_by_partition(asset, DagsterEventType.ASSET_MATERIALIZATION, only)
        ended = times_by_id(instance, module, list(latest.values()))
        newest |= {(tenant, module): ended[each] for tenant, each in latest.items() if each in ended}
    return newest


def failure_streaks(
    instance: dg.DagsterInstance, modules: Collection[str], tenants: Collection[str], *, since: datetime
) -> dict[ModuleKey, list[str]]:
    """The runs that failed after the newest outcome of each of these tenants' modules, oldest first. Two queries for a
    module, and one for the runs. Runs that a person cancelled have not failed."""
    outcomes = _newest_outcomes(instance, modules, set(tenants))
    streaks: dict[ModuleKey, list[str]] = {}
    for run in sorted(failed_runs(instance, since=since, tenants=sorted(tenants)), key=lambda run: run.ended_at):
        if run.tenant is None or run.status is not dg.DagsterRunStatus.FAILURE:
            continue
        for module in run.modules.intersection(modules):
            key = (run.tenant, module)
            # Where one module of a run failed, the others have their outcome all the same.
            if key not in outcomes or outcomes[key] < run.began_at:
                streaks.setdefault(key, []).append(run.run_id)
    return streaks


def runs_of_newest_outcomes(instance: dg.DagsterInstance, modules: Collection[str]) -> set[str]:
    """The runs that hold the newest materialization of any (tenant, module): deleting one would delete the outcome."""
    runs = set()
    for module in modules:
        asset = dg.AssetKey(module)
        latest = instance.get_latest_storage_id_by_partition(asset, DagsterEventType.ASSET_MATERIALIZATION)
        runs |= {record.run_id for record in _summaries(instance, asset, list(latest.values())) if record.run_id}
    return runs


def read_outcomes(instance: dg.DagsterInstance, attempts: Mapping[ModuleKey, Attempts]) -> dict[ModuleKey, RunOutcome]:
    """The last outcome of each of these attempts, from the metadata of its materialization."""
    wanted = {
        key: Attempts(outcome_at=attempt.outcome_at, outcome_id=attempt.outcome_id)
        for key, attempt in attempts.items()
        if attempt.outcome_id is not None
    }
    by_module: dict[str, dict[int, str]] = {}
    for (tenant, module), attempt in wanted.items():
        if _outcome_cache.get((tenant, module), (None, None))[0] != attempt and attempt.outcome_id is not None:
            by_module.setdefault(module, {})[attempt.outcome_id] = tenant
    for module, tenants in by_module.items():
        for event in events_by_id(instance, module, sorted(tenants)):
            key = (tenants[event.storage_id], module)
            _outcome_cache[key] = (wanted[key], _outcome(event))
    cached = {key: _outcome_cache[key] for key in wanted if key in _outcome_cache}
    for oldest in list(islice(_outcome_cache, max(0, len(_outcome_cache) - _MOST_CACHED))):
        del _outcome_cache[oldest]
    return {key: outcome for key, (attempt, outcome) in cached.items() if outcome and attempt == wanted[key]}


def reason_of(instance: dg.DagsterInstance, module: str, outcome_id: int) -> str:
    """The reason of an outcome in words; "" where it has none."""
    for event in events_by_id(instance, module, [outcome_id]):
        return str(event.values.get("reason", ""))
    return ""


def outcome_since(instance: dg.DagsterInstance, tenant: str, module: str, moment: datetime) -> str | None:
    """The run that reported this module's last outcome, if that was after `moment`."""
    for event in newest_events(instance, EventKind.MATERIALIZATION, module, tenants=[tenant], limit=1).items:
        at = _believed(event.at)
        return event.run_id if at and at > moment and _outcome(event) else None
    return None


def _outcome(event: ModuleEvent) -> RunOutcome | None:
    """None where the materialization was reported by hand and names no traces."""
    values = event.values
    if "window_end" not in values:
        return None

    def total(name: str) -> int | None:
        return int(str(values[name])) if name in values else None

    return RunOutcome(
        window_end=datetime.fromtimestamp(float(str(values["window_end"])), UTC),
        annotations=_annotations_seen(total(ANNOTATION_TOTAL), values.get(ANNOTATION_MARKS)),
        verdict=str(values.get("verdict", "")),
        decisions=total("spans_read") or 0,
        labels=_labels(values.get("labels")),
        models=_models(values.get(MODELS)),
        version=str(values["version"]) if "version" in values else None,
        reviews_needed=total(REVIEWS_NEEDED) or 0,
    )


def _annotations_seen(total: int | None, marks: object) -> AnnotationsSeen | None:
    if total is None:
        return None
    times = marks if isinstance(marks, list) else []
    return AnnotationsSeen(total, array("q", (int(str(time)) for time in times)))


def _labels(value: object) -> frozenset[str] | None:
    return frozenset(map(str, value)) if isinstance(value, list) and value else None


def _models(value: object) -> tuple[str, ...] | None:
    return tuple(map(str, value)) if isinstance(value, list) and value else None


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
    """Whether an earlier tenant of that name was meant."""
    return bool(begins and tenant in begins and moment < begins[tenant])


def _add_failures(
    attempts: dict[ModuleKey, Attempts], ids: AttemptIds, tenant: str, begins: Mapping[str, datetime] | None
) -> None:
    """Count a tenant's failed and cancelled runs after each module's last outcome."""
    for run in ids.failures.get(tenant, ()):
        if _is_over(run.ended_at, tenant, begins):
            continue
        for module in run.modules.intersection(ids.outcomes):
            known = attempts.get((tenant, module), Attempts())
            # Where one module of a run failed, the others have their outcome all the same.
            if known.outcome_at and known.outcome_at >= run.began_at:
                continue
            attempts[tenant, module] = replace(
                known,
                failures=known.failures + 1,
                last_failure_at=_believed(run.ended_at),
                last_failed_run=run.run_id,
                lost=_lost(run, known.lost),
            )


def _lost(run: RunSummary, before: LostRun | None) -> LostRun | None:
    """The failed run as a lost one, after `before`; None where it failed with an error of its own or was cancelled."""
    if run.status is not dg.DagsterRunStatus.FAILURE or FAILED_TAG in run.tags:
        return None
    attempt = run.tags.get(ATTEMPT_TAG) or run.run.root_run_id or run.run_id
    window_end = None
    with suppress(KeyError, ValueError):  # whoever launches a run may write what they like
        window_end = datetime.fromisoformat(run.tags[WINDOW_END_TAG]).astimezone(UTC)
    return LostRun(before.times + 1 if before else 1, attempt, window_end)


def _believed(moment: datetime) -> datetime | None:
    return moment if believable(moment, datetime.now(UTC)) else None


def failure_horizon(longest_interval: timedelta, longest_backoff: timedelta) -> timedelta:
    """How far back failures are read: long enough for the longest back-off to be reached, and at least a day.

    Run keys contain the hour, so a failure of the same hour must always be found.
    """
    return 12 * max(longest_interval, longest_backoff)
