"""Everything that explains the status of one module: last outcome, failures, open test, events."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.evaluation.judge_agreement import JudgeAgreement, last_agreement
from autoopt_pipeline.evaluation.sequential_test_log import batch_of, steps_of_open_test
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.registry.program_cost import INCUMBENT, ProgramCost, describe_costs, read_costs
from autoopt_pipeline.registry.records import Manifest, Transition
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.reviews.order import to_review
from autoopt_pipeline.run_history.failures import WHOLE_RUN, causes_of
from autoopt_pipeline.run_history.module_events import EventKind, newest_events
from autoopt_pipeline.run_history.outcomes import COSTS
from autoopt_pipeline.run_history.runs import failed_runs
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.status.active_versions import verdict_on_active
from autoopt_pipeline.status.module_status import ModuleStatus, tenant_standings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.text import iso
from autoopt_pipeline.traces.client import CountRequest

_FAILURES_SHOWN = 5
_EVENTS_SHOWN = 20
_RATE_WINDOW = timedelta(days=1)


@dataclass(frozen=True)
class LastOutcome:
    """The last outcome of a module; scores are 0 to 1.

    `unread_answers` counts the answers that could not be graded, by program and by cause, and `costs` has what a
    decision of each program costs.
    """

    at: datetime
    run_id: str
    verdict: str
    reason: str
    version: str | None
    incumbent_score: float | None
    candidate_score: float | None
    lm_calls: int | None
    lm_tokens: int | None
    lm_dollars: float | None
    costs: Mapping[str, ProgramCost]
    unread_answers: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class FailedRun:
    at: datetime
    run_id: str
    cause: str


@dataclass(frozen=True)
class OpenSequentialTest:
    """A candidate under test: how many traces were drawn and decided about, and its gain on them (-1 to 1).

    `to_review` traces that were drawn last await reviews, those with one included. The gain is None before the first
    decision.
    """

    version: str
    since: datetime
    traces: int
    gain: float | None
    to_review: int


@dataclass(frozen=True)
class Event:
    """An event other than an outcome, such as a rollback."""

    at: datetime
    kind: str
    reason: str
    details: dict[str, Any]


@dataclass(frozen=True)
class ModuleDetail:
    """Everything that explains the status of one module of one tenant. Failures and events are newest first.

    `traces_per_day` is the number of traces of the last day; None where Phoenix could not count them.
    """

    standing: ModuleStatus
    config: RoutingConfigUnified
    config_version: int
    last_run: LastOutcome | None
    failures: tuple[FailedRun, ...]
    last_transition: Transition | None
    sequential_test: OpenSequentialTest | None
    judge: JudgeAgreement | None
    events: tuple[Event, ...]
    traces_per_day: int | None

    @property
    def due_in(self) -> timedelta | None:
        """How long until there are enough new traces, at the rate of the last day."""
        evidence, need = self.standing.decision.evidence, self.standing.decision.need
        if evidence is None or need is None or not self.traces_per_day or evidence.total >= need:
            return None
        if self.standing.decision.awaits_reviews:
            return None  # reviews do not come with the traces
        return _RATE_WINDOW * ((need - evidence.total) / self.traces_per_day)

    @property
    def cost(self) -> str:
        """What a decision of the program that serves costs, in words; "" if nothing was measured."""
        if self.standing.active:
            return describe_costs(self.standing.active_costs)
        return describe_costs(self.last_run.costs, INCUMBENT) if self.last_run else ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, as `ModuleStatus.as_dict`."""
        config, module = self.config, self.standing.module
        return self.standing.as_dict() | {
            "config": {
                "version": self.config_version,
                "optimization_interval_seconds": config.interval_seconds(module),
                "min_samples_for_optimization": config.min_samples(module),
                "lookback_seconds": config.lookback_seconds,
                "mode": config.mode_of(module),
            },
            "last_run": _plain(self.last_run),
            "failed_runs": [_plain(failure) for failure in self.failures],
            "last_transition": self.last_transition.model_dump(mode="json") if self.last_transition else None,
            "sequential_test": _plain(self.sequential_test),
            "judge": _plain(self.judge),
            "events": [_plain(event) for event in self.events],
            "traces_per_day": self.traces_per_day,
            "enough_traces_in_seconds": round(self.due_in.total_seconds()) if self.due_in else None,
        }


def module_stories(
    entry: StoredConfig,
    modules: Collection[str],
    instance: dg.DagsterInstance,
    connections: Connections,
    *,
    now: datetime,
) -> list[ModuleDetail]:
    """The details of these modules of a tenant, in their order.

    Raises `InvalidConfig` or `UnknownModule`; errors of Phoenix are part of the details.
    """
    config = entry.parse()
    for module in modules:
        if module not in config.modules:
            get_module(module)
    standings = tenant_standings({entry.tenant_id: entry}, instance, connections, now=now, count_all=True)
    by_module = {standing.module: standing for standing in standings}
    return [_story(by_module[module], config, entry, instance, connections, now) for module in modules]


def _story(
    standing: ModuleStatus,
    config: RoutingConfigUnified,
    entry: StoredConfig,
    instance: dg.DagsterInstance,
    connections: Connections,
    now: datetime,
) -> ModuleDetail:
    tenant, module = standing.tenant_id, standing.module
    artifacts = connections.artifacts(tenant, module)
    transitions = artifacts.transitions()
    return ModuleDetail(
        standing=standing,
        config=config,
        config_version=entry.version,
        last_run=_as_made(standing.unreported) if standing.unreported else _last_outcome(instance, entry, module),
        failures=_failures(instance, standing),
        last_transition=transitions[-1] if transitions else None,
        sequential_test=_find_open_test(artifacts, transitions[-1] if transitions else None),
        judge=last_agreement(artifacts.sequential_test_steps()),
        events=_events(instance, entry, module),
        traces_per_day=_traces_per_day(connections, tenant, module, now),
    )


def _last_outcome(instance: dg.DagsterInstance, entry: StoredConfig, module: str) -> LastOutcome | None:
    for event in newest_events(
        instance, EventKind.MATERIALIZATION, module, tenants=[entry.tenant_id], since=entry.since, limit=1
    ).items:
        metadata = event.values
        return LastOutcome(
            at=event.at,
            run_id=event.run_id,
            verdict=str(metadata.get("verdict", "")),
            reason=str(metadata.get("reason", "")),
            version=metadata.get("version"),
            incumbent_score=metadata.get("incumbent_score"),
            candidate_score=metadata.get("candidate_score"),
            lm_calls=metadata.get("lm_calls"),
            lm_tokens=metadata.get("lm_tokens"),
            lm_dollars=metadata.get("lm_dollars"),
            costs=read_costs(metadata.get(COSTS)),
            unread_answers=metadata.get("unread_answers") or {},
        )
    return None


def _as_made(manifest: Manifest) -> LastOutcome:
    """The outcome of the run that made a version, from its manifest."""
    return LastOutcome(
        at=manifest.created_at,
        run_id=manifest.run_id,
        verdict=verdict_on_active(manifest),
        reason=manifest.reason,
        version=manifest.version,
        incumbent_score=manifest.incumbent_score,
        candidate_score=manifest.candidate_score,
        lm_calls=manifest.lm_calls,
        lm_tokens=manifest.lm_tokens,
        lm_dollars=manifest.lm_dollars,
        costs=manifest.costs,
        unread_answers=manifest.unread,
    )


def _failures(instance: dg.DagsterInstance, standing: ModuleStatus) -> tuple[FailedRun, ...]:
    """The newest runs that failed since the last outcome, at most `_FAILURES_SHOWN`."""
    if not standing.attempts.failures:
        return ()
    failed = failed_runs(instance, tenants=[standing.tenant_id], since=standing.attempts.outcome_at)
    newest = [run for run in reversed(failed) if standing.module in run.modules]
    failures = []
    for run in newest[: min(standing.attempts.failures, _FAILURES_SHOWN)]:
        causes = causes_of(instance, run.run_id)
        others = "; ".join(f"{step}: {cause}" for step, cause in causes.items())
        cause = causes.get(standing.module) or causes.get(WHOLE_RUN) or others
        failures.append(FailedRun(run.ended_at, run.run_id, cause or "no step says why"))
    return tuple(failures)


def _find_open_test(artifacts: VersionStore, moved: Transition | None) -> OpenSequentialTest | None:
    """The sequential test that the next run will continue: no transition has been made since it began."""
    steps = steps_of_open_test(artifacts)
    if not steps or (moved and moved.at > steps[0].at):
        return None
    batches = [batch_of(step.batch) for step in steps if step.batch]
    traces = sum(batch.drawn for batch in batches)
    return OpenSequentialTest(
        steps[0].version,
        steps[0].at,
        traces,
        sum(batch.gain for batch in batches) / traces if traces else None,
        len(to_review(steps[-1].drawn)),
    )


def _events(instance: dg.DagsterInstance, entry: StoredConfig, module: str) -> tuple[Event, ...]:
    events = []
    for event in newest_events(
        instance, EventKind.OBSERVATION, module, tenants=[entry.tenant_id], since=entry.since, limit=_EVENTS_SHOWN
    ).items:
        details = dict(event.values)
        if kind := details.pop("event", None):
            events.append(Event(event.at, str(kind), str(details.pop("reason", "")), details))
    return tuple(events)


def _traces_per_day(connections: Connections, tenant: str, module: str, now: datetime) -> int | None:
    phoenix = connections.phoenix
    try:
        project = phoenix.project(project_name(tenant))
        if project is None:
            return None
        wanted = CountRequest(project.id, get_module(module).contract.span_name, now - _RATE_WINDOW, now)
        return phoenix.count([wanted])[wanted]
    except AutooptError:
        return None  # the decision has the error of Phoenix, or does not depend on it


def _plain(record: Any) -> dict[str, Any] | None:
    if record is None:
        return None
    return {name: _plain_value(value) for name, value in vars(record).items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain_value(entry) for name, entry in value.items()}
    if isinstance(value, ProgramCost):
        return value.model_dump()
    return iso(value) if isinstance(value, datetime) else value
