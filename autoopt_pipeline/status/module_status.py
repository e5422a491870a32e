"""The status of tenants' modules, which the commands and the dashboard show: decision, last outcome, active version."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.evaluation.judge_agreement import JudgeAgreement, last_agreement
from autoopt_pipeline.evaluation.sequential_test_log import OPEN, batch_of, steps_of_open_test
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.orchestration.planner import WHOLE_TENANT, Plan, PlanOptions, plan_tenants
from autoopt_pipeline.registry.module_versions import decided_about
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT, ProgramCost, describe_costs, read_costs
from autoopt_pipeline.registry.quality_records import ModuleQuality, QualityFall, read_qualities
from autoopt_pipeline.registry.records import PASSED, Manifest, Rollback, Transition, Verdict
from autoopt_pipeline.registry.rollout_records import indexed_rollouts
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.reviews.order import to_review
from autoopt_pipeline.run_history.failures import WHOLE_RUN, causes_of
from autoopt_pipeline.run_history.module_events import EventKind, newest_events
from autoopt_pipeline.run_history.outcomes import COSTS, ModuleKey, read_outcomes
from autoopt_pipeline.run_history.progress import RunProgress, read_progress
from autoopt_pipeline.run_history.runs import failed_runs
from autoopt_pipeline.scheduling.conditions import Attempts, Reason, RunOutcome, ScheduleDecision
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.status.active_versions import NEVER_PROMOTED, ActiveVersion, read_active, read_active_by_index
from autoopt_pipeline.status.fleet_decisions import FleetDecisions
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.traces.client import CountRequest

_FAILURES_SHOWN = 5
_EVENTS_SHOWN = 20
_RATE_WINDOW = timedelta(days=1)


class Health(StrEnum):
    """The health of a module, worst first. A module that has too little data to learn from is not up to date."""

    FAILING = "failing"
    NEEDS_APPROVAL = "needs approval"
    NEEDS_REVIEWS = "needs reviews"
    RUNNING = "running"
    COLLECTING = "collecting data"
    UP_TO_DATE = "up to date"
    DISABLED = "disabled"


@dataclass(frozen=True)
class ModuleStatus:
    """One module of one tenant at a moment.

    `serving` is what serves, and `decided` a person's decision about the version of the last outcome. `progress` is
    there while a run is in a long phase. Before `begins`, an earlier tenant had that name. `uncounted` is the error for
    which Phoenix could not count new traces. `rollout_reviews` disagreements of a rollout's two versions waited for a
    review at its last analysis. `quality` is what the monitor of live quality saw last, None before its first check.
    """

    tenant_id: str
    module: str
    decision: ScheduleDecision
    attempts: Attempts
    outcome: RunOutcome | None = None
    serving: ActiveVersion = NEVER_PROMOTED
    decided: str | None = None
    progress: RunProgress | None = None
    begins: datetime | None = None
    uncounted: str = ""
    rollout_reviews: int = 0
    quality: ModuleQuality | None = None

    @property
    def active(self) -> str | None:
        """The version that serves, None for the module's baseline."""
        return self.serving.version

    @property
    def active_score(self) -> float | None:
        """The score of the active version on held-out traces (0 to 1) before it was promoted."""
        return self.serving.score

    @property
    def active_lm(self) -> str | None:
        """The language model that the active version was proven with."""
        return self.serving.manifest.lm if self.serving.manifest else None

    @property
    def active_costs(self) -> Mapping[str, ProgramCost]:
        """What decisions of the active version and of its incumbent cost before it was promoted."""
        return self.serving.manifest.costs if self.serving.manifest else {}

    @property
    def error(self) -> str | None:
        """Why the files of what serves cannot be read."""
        return self.serving.error

    @property
    def rolled_back(self) -> Rollback | None:
        """The rollback that made the active version serve, if any."""
        return self.serving.rolled_back

    @property
    def unreported(self) -> Manifest | None:
        """The manifest of the active version where its run was lost before it could report an outcome, or its report is
        gone."""
        manifest, reported_at = self.serving.manifest, self.attempts.outcome_at
        if manifest is None or reported_at is None:
            return manifest
        return manifest if manifest.created_at > reported_at and manifest.verdict in set(Verdict) else None

    @property
    def fall(self) -> QualityFall | None:
        """The last fall in quality of what serves; None where it did not fall."""
        return self.quality.fall if self.quality and self.quality.version == self.active else None

    @property
    def fell_since_last(self) -> bool:
        """Whether quality fell, and no optimization has ended since."""
        return self.fall is not None and (self.last_at is None or self.last_at <= self.fall.at)

    @property
    def last_at(self) -> datetime | None:
        """When a run last had an outcome; None where the module was never optimized."""
        return self.unreported.created_at if self.unreported else self.attempts.outcome_at

    @property
    def enabled(self) -> bool:
        return self.decision.reason is not Reason.DISABLED

    @property
    def needs_attention(self) -> bool:
        """Whether something failed or waits for a person, or quality fell and no optimization has ended since."""
        failing = self.decision.reason in {Reason.ERROR, Reason.BACKING_OFF} or self.error is not None
        return failing or (self.enabled and (self.proposed or self.awaits_reviews or self.fell_since_last))

    @property
    def proposed(self) -> bool:
        """Whether the version of the last outcome waits for a person."""
        return self.verdict == Verdict.AWAITING_APPROVAL

    @property
    def awaits_reviews(self) -> bool:
        """Whether reviews decide about the version of the last outcome, and too few have been given."""
        return self.verdict == Verdict.AWAITING_REVIEWS and not self.decision.launch

    @property
    def reviews_left(self) -> int | None:
        """After how many more reviews a decision is possible at the soonest. None where that is not known."""
        decision = self.decision
        if not decision.awaits_reviews or decision.evidence is None or decision.need is None:
            return None
        return max(0, decision.need - decision.counted)

    @cached_property
    def verdict(self) -> str:
        """The verdict of the last outcome, or of the person who decided after it; empty where there was none."""
        if self.unreported:
            return _verdict_on_active(self.unreported)
        return self.decided or (self.outcome.verdict if self.outcome else "")

    @cached_property
    def health(self) -> Health:
        """The first that applies."""
        reason = self.decision.reason
        if reason is Reason.ERROR or self.error:
            return Health.FAILING
        if reason is Reason.DISABLED:
            return Health.DISABLED
        if self.attempts.failures:
            return Health.FAILING
        if self.proposed:
            return Health.NEEDS_APPROVAL
        if self.awaits_reviews and reason is not Reason.IN_PROGRESS:
            return Health.NEEDS_REVIEWS
        if reason is Reason.IN_PROGRESS or self.decision.launch:
            return Health.RUNNING
        learns = self.last_at and self.verdict != Verdict.NOT_ENOUGH_DATA
        return Health.UP_TO_DATE if learns else Health.COLLECTING

    def as_dict(self) -> dict[str, Any]:
        """For JSON: times are ISO in UTC, and unknown values are None."""
        decision, evidence, attempts, progress = self.decision, self.decision.evidence, self.attempts, self.progress
        return {
            "tenant": self.tenant_id,
            "module": self.module,
            "enabled": self.enabled,
            "health": self.health.value,
            "decision": decision.reason.value,
            "reason": decision.detail,
            "conditions": [
                {
                    "name": condition.name,
                    "met": condition.met,
                    "detail": condition.detail,
                    "until": _iso(condition.until),
                }
                for condition in decision.conditions
            ],
            "next_due": _iso(decision.until),
            "new_traces": evidence.new_traces if evidence else None,
            "new_annotations": evidence.new_annotations if evidence else None,
            "needed": decision.need,
            "running": attempts.running,
            "progress": {"at": _iso(progress.at), **progress.progress.as_dict()} if progress else None,
            "backing_off": decision.reason is Reason.BACKING_OFF,
            "failures": attempts.failures,
            "last_failure_at": _iso(attempts.last_failure_at),
            "last_failed_run": attempts.last_failed_run,
            "last_verdict": self.verdict or None,
            "needs_approval": self.proposed,
            "needs_reviews": self.awaits_reviews,
            "rollout_reviews": self.rollout_reviews,
            "last_outcome_at": _iso(self.last_at),
            "active_version": self.active,
            "active_score": self.active_score,
            "active_lm": self.active_lm,
            "active_cost": self.active_costs[CANDIDATE].model_dump() if CANDIDATE in self.active_costs else None,
            "live_quality": self.quality.model_dump(mode="json") if self.quality else None,
            "rolled_back": self.rolled_back.model_dump(mode="json") if self.rolled_back else None,
            "error": self.error,
        }


def tenant_standings(
    stored: Mapping[str, StoredConfig],
    instance: dg.DagsterInstance,
    connections: Connections,
    *,
    now: datetime,
    count_all: bool = False,
    fleet: FleetDecisions | None = None,
) -> list[ModuleStatus]:
    """Every module of these tenants. The number of requests and queries per module does not depend on the tenants.

    For a `fleet`, only decisions that may have changed since its last refresh are made anew, and what serves comes from
    the index of all tenants instead of two files for each module. Then what the active versions cost and which model
    they ask is not known, nor whether their files are damaged, and `quality` is there only after a fall.

    With `count_all`, new traces are counted even where another condition decides.
    """
    qualities = read_qualities(connections.files, tenants=stored.keys(), fallen_only=fleet is not None)
    plan = plan_tenants(
        stored,
        instance,
        connections.phoenix,
        now=now,
        settings=connections.settings,
        options=PlanOptions(count_all=count_all, memory=fleet.memory if fleet else None),
        falls={key: quality.fall for key, quality in qualities.items() if quality.fall},
    )
    known = fleet or FleetDecisions()
    known.take(plan, stored.keys())
    attempts = known.attempts
    outcomes = read_outcomes(instance, attempts)
    keys = [key for key in known.decisions if key[1] != WHOLE_TENANT]
    files = connections.files
    active = read_active_by_index(files, keys, attempts) if fleet else read_active(files, keys)
    beside = {key for key, version in active.items() if version.has_canary}
    entries = indexed_rollouts(files) if beside else []
    to_review = {(entry.tenant_id, entry.module): entry.to_review for entry in entries}
    decided = _decided(connections, outcomes)
    running = {key: attempt.running for key, attempt in attempts.items() if attempt.running}
    progress = read_progress(instance, running)
    return [
        ModuleStatus(
            tenant_id=key[0],
            module=key[1],
            decision=decision,
            attempts=attempts.get(key, _NO_ATTEMPTS),
            outcome=outcomes.get(key),
            serving=active.get(key, NEVER_PROMOTED),
            decided=decided.get(key),
            progress=progress.get(key),
            begins=stored[key[0]].since,
            uncounted=_uncounted(plan, decision, count_all=count_all),
            rollout_reviews=to_review.get(key, 0) if key in beside else 0,
            quality=_quality(qualities.get(key), stored[key[0]]),
        )
        for key, decision in known.decisions.items()
    ]


_NO_ATTEMPTS = Attempts()


def _quality(quality: ModuleQuality | None, entry: StoredConfig) -> ModuleQuality | None:
    """None where it is about an earlier tenant of that name."""
    fall = quality.fall if quality else None
    return None if fall and entry.since and fall.at < entry.since else quality


def _uncounted(plan: Plan, decision: ScheduleDecision, *, count_all: bool) -> str:
    """Why Phoenix could not count new traces, where it was asked to."""
    error = str(plan.phoenix_error or "")
    asked = decision.detail == error or (count_all and decision.reason not in {Reason.DISABLED, Reason.ERROR})
    return error if asked and decision.evidence is None else ""


def _decided(connections: Connections, outcomes: Mapping[ModuleKey, RunOutcome]) -> dict[ModuleKey, str]:
    """People's decisions about versions that passed the gate. It reads one or two files for each."""
    decided = {}
    for key, outcome in outcomes.items():
        if outcome.verdict not in PASSED or outcome.version is None:
            continue
        artifacts = connections.artifacts(*key)
        try:
            if decision := decided_about(artifacts, outcome.version, artifacts.transitions()):
                decided[key] = decision
        except AutooptError:
            continue  # the error of the store is shown with the active version
    return decided


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
        verdict=_verdict_on_active(manifest),
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


def _verdict_on_active(manifest: Manifest) -> str:
    """The verdict on an active version: if it waited for approval or for proof, it has received that."""
    if manifest.verdict in PASSED:
        return "approved"
    return Verdict.PROMOTED.value if manifest.verdict in OPEN else manifest.verdict


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
    return _iso(value) if isinstance(value, datetime) else value


def _iso(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat() if moment else None
