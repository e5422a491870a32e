"""Collects what `decide` needs from every source, in few requests, and decides for each (tenant, module)."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache

import dagster as dg

from autoopt_pipeline.errors import AutooptError, LMNotConfigured, PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.lm.choice import answering_models
from autoopt_pipeline.modules.catalog import get_module, missing_module, modules
from autoopt_pipeline.orchestration.budget_guard import remaining_budgets
from autoopt_pipeline.registry.quality_records import QualityFall
from autoopt_pipeline.run_history.outcomes import ModuleKey, failure_horizon, read_attempts, read_outcomes
from autoopt_pipeline.scheduling.budgets import RemainingBudget
from autoopt_pipeline.scheduling.conditions import (
    MAX_BACKOFF,
    Attempts,
    Evidence,
    LostRun,
    NeedsEvidence,
    Reason,
    RunOutcome,
    ScheduleDecision,
    decide,
    new_since,
    why_off,
    window_end_at,
)
from autoopt_pipeline.scheduling.turns import QueuePosition, queue_order
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.counts import Wanted, gather_evidence

WHOLE_TENANT = "*"
"""Stands for all modules of a tenant whose configuration cannot be read."""

_TENANTS_AT_ONCE = 100
"""Tenants that Phoenix is asked about before the deadline is checked: two documents of totals, and at most two of
counts for each module."""


@dataclass(frozen=True)
class Plan:
    """All decisions at one moment. Traces up to `window_end` were counted, and are what a run will read.

    `reached` is the last tenant that Phoenix was asked about, if there was no time for all.
    """

    window_end: datetime
    decisions: dict[ModuleKey, ScheduleDecision]
    attempts: dict[ModuleKey, Attempts] = field(default_factory=dict)
    configs: dict[str, RoutingConfigUnified] = field(default_factory=dict)
    phoenix_asked: bool = False
    phoenix_error: PhoenixUnavailable | PhoenixRefused | None = None
    reached: QueuePosition | None = None

    def due(self) -> dict[str, list[str]]:
        """Due modules by tenant, the longest waiting tenant first."""
        tenants: dict[str, list[str]] = {}
        for (tenant, module), decision in self.decisions.items():
            if decision.launch:
                tenants.setdefault(tenant, []).append(module)

        def waiting_since(tenant: str) -> float:
            # A module that was never optimized has waited longest.
            since = [self.decisions[tenant, module].waiting_since for module in tenants[tenant]]
            return min(moment.timestamp() if moment else 0.0 for moment in since)

        return {tenant: sorted(tenants[tenant]) for tenant in sorted(tenants, key=lambda t: (waiting_since(t), t))}

    def retried(self, tenant: str, module: str) -> LostRun | None:
        """The lost run for which the module is retried soon, if any."""
        lost = self.attempts.get((tenant, module), Attempts()).lost
        return lost if lost and lost.times <= self.configs[tenant].retry.max_retries else None

    def run_key(self, tenant: str) -> str:
        """The key of the tenant's next run. Every attempt has a key of its own.

        Dagster never launches a key twice, not even after a failure. So the key contains everything that an attempt
        changes, and the hour, because failures are not read for ever and somebody may wipe an outcome.
        """
        own = [
            [module, attempt.outcome_id, attempt.last_failed_run]
            for module in sorted(modules())
            if (attempt := self.attempts.get((tenant, module)))
        ]
        digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:16]
        return f"{tenant}/{digest}/{self.window_end:%Y-%m-%dT%H}"

    def counts(self) -> dict[str, int]:
        """The number of (tenant, module) by reason."""
        return dict(sorted(Counter(d.reason.value for d in self.decisions.values()).items()))

    def errors(self) -> dict[ModuleKey, ScheduleDecision]:
        return {key: d for key, d in self.decisions.items() if d.reason is Reason.ERROR}

    def missing(self) -> set[ModuleKey]:
        """The errors about modules that a configuration names and this process does not know."""
        return {key for key in self.errors() if key[1] != WHOLE_TENANT and key[1] not in modules()}


@dataclass(frozen=True)
class PlanOptions:
    """Which modules a plan is about (None: all), and what Phoenix is asked.

    `count_all` asks it also about modules that something else holds back, for people who want to see how far they are.
    With `seconds`, planning takes about so long: Phoenix is asked about the tenants that have waited longest, or that
    come `after` the last one of the previous tick, and always about some. The others are left to the next ticks.
    """

    only_modules: Collection[str] | None = None
    count_all: bool = False
    seconds: float | None = None
    after: QueuePosition | None = None


_NO_FALLS: Mapping[ModuleKey, QualityFall] = {}


def plan_tenants(
    stored: Mapping[str, StoredConfig],
    instance: dg.DagsterInstance,
    phoenix: Phoenix,
    *,
    now: datetime,
    settings: Settings,
    options: PlanOptions = PlanOptions(),
    falls: Mapping[ModuleKey, QualityFall] = _NO_FALLS,
) -> Plan:
    """Decide for every tenant given. An error in one tenant's configuration affects only that tenant.

    `falls` are the last falls in quality of what serves. Of the settings, the settling time, the jitter, the language
    models and the daily budget of all tenants count. When Phoenix fails, everything that only Phoenix could decide is
    an error; it is never taken for "no traces".
    """
    deadline = None if options.seconds is None else time.monotonic() + options.seconds
    window_end = window_end_at(now, settings.settling_seconds)
    configs, unreadable = _parse_configs(stored)
    failures_since = failures_count_since(configs.values(), now=now)
    begins = {tenant: entry.since for tenant, entry in stored.items() if entry.since}
    planner = _Planner(
        instance=instance,
        phoenix=phoenix,
        now=now,
        until=window_end,
        settings=settings,
        configs=configs,
        begins=begins,
        attempts=read_attempts(instance, modules(), failures_since=failures_since, tenants=configs, begins=begins),
        budgets=remaining_budgets(instance, configs.values(), settings, now=now),
        falls={key: fall for key, fall in falls.items() if fall.at >= begins.get(key[0], fall.at)},
    )
    decided, pending = planner.decide_without_traces(options)
    counted = planner.decide_with_traces(pending, deadline, options.after)
    uncounted = (
        ScheduleDecision(Reason.ERROR, str(counted.error))
        if counted.error
        else ScheduleDecision(Reason.DEFERRED, _DEFERRED)
    )
    decisions = unreadable | dict.fromkeys(counted.left, uncounted) | decided | counted.decisions
    return Plan(
        window_end=window_end,
        decisions=dict(sorted(decisions.items())),
        attempts=planner.attempts,
        configs=configs,
        phoenix_asked=bool(pending),
        phoenix_error=counted.error,
        reached=counted.reached if counted.left else None,
    )


_DEFERRED = "the tick ran out of time; the next ticks count its traces"


def _parse_configs(
    stored: Mapping[str, StoredConfig],
) -> tuple[dict[str, RoutingConfigUnified], dict[ModuleKey, ScheduleDecision]]:
    """The configurations that can be read, and an error for each tenant whose configuration cannot."""
    configs: dict[str, RoutingConfigUnified] = {}
    unreadable: dict[ModuleKey, ScheduleDecision] = {}
    for tenant, entry in stored.items():
        try:
            configs[tenant] = entry.parse()
        except AutooptError as e:
            unreadable[tenant, WHOLE_TENANT] = ScheduleDecision(Reason.ERROR, str(e))
    return configs, unreadable


@dataclass(frozen=True)
class _Pending:
    """A tenant's modules that Phoenix is asked about, and since when (Unix time) one of them has waited for that."""

    modules: Sequence[str]
    since: float


@dataclass(frozen=True)
class _Counted:
    """What Phoenix decided, the modules that were left out, and the last tenant that it was asked about."""

    decisions: dict[ModuleKey, ScheduleDecision]
    left: Sequence[ModuleKey]
    reached: QueuePosition | None
    error: PhoenixUnavailable | PhoenixRefused | None


@dataclass(frozen=True)
class _Planner:
    """Decides for tenants with configurations. What Dagster knows of them has been read already."""

    instance: dg.DagsterInstance
    phoenix: Phoenix
    now: datetime
    until: datetime
    settings: Settings
    configs: Mapping[str, RoutingConfigUnified]
    begins: Mapping[str, datetime]
    attempts: dict[ModuleKey, Attempts]
    budgets: Mapping[str, tuple[RemainingBudget, ...]]
    falls: Mapping[ModuleKey, QualityFall]

    def decide_without_traces(
        self, options: PlanOptions
    ) -> tuple[dict[ModuleKey, ScheduleDecision], dict[str, _Pending]]:
        """What configuration, history and limits decide, and by tenant the modules to ask Phoenix about."""
        why_missing = cache(lambda module: str(missing_module(module)))
        decisions: dict[ModuleKey, ScheduleDecision] = {}
        pending: dict[str, _Pending] = {}
        for tenant, config in self.configs.items():
            to_count: list[str] = []
            waiting_since: list[float] = []
            for module in dict.fromkeys([*modules(), *config.modules]):
                if options.only_modules is not None and module not in options.only_modules:
                    continue
                if module not in modules():
                    off = why_off(config, module)
                    reason = Reason.DISABLED if off else Reason.ERROR
                    decisions[tenant, module] = ScheduleDecision(reason, off or why_missing(module))
                    continue
                answer = self._decide((tenant, module))
                if isinstance(answer, NeedsEvidence):
                    waiting_since.append(answer.since.timestamp() if answer.since else 0.0)
                    to_count.append(module)
                    continue
                decisions[tenant, module] = answer
                if options.count_all and answer.reason is not Reason.DISABLED:
                    to_count.append(module)
            if to_count:
                pending[tenant] = _Pending(to_count, min(waiting_since, default=0.0))
        return decisions, pending

    def decide_with_traces(
        self, pending: Mapping[str, _Pending], deadline: float | None, after: QueuePosition | None
    ) -> _Counted:
        """Count what is new, many tenants at a time, until all are done, the deadline is over or Phoenix fails."""
        queue = queue_order([(waiting.since, tenant) for tenant, waiting in pending.items()], after)
        decisions: dict[ModuleKey, ScheduleDecision] = {}
        done, reached, error = 0, None, None
        while done < len(queue) and not (done and deadline is not None and time.monotonic() >= deadline):
            batch = queue[done : done + _TENANTS_AT_ONCE]
            reached = batch[-1]
            try:
                decisions |= self._count(
                    [(tenant, module) for _, tenant in batch for module in pending[tenant].modules]
                )
            except (PhoenixUnavailable, PhoenixRefused) as e:
                error = e
                break
            done += len(batch)
        left = [(tenant, module) for _, tenant in queue[done:] for module in pending[tenant].modules]
        return _Counted(decisions, left, reached, error)

    def _count(self, keys: Sequence[ModuleKey]) -> dict[ModuleKey, ScheduleDecision]:
        outcomes = read_outcomes(self.instance, {key: self.attempts[key] for key in keys if key in self.attempts})
        wanted = []
        for key in keys:
            config, begins, outcome = self.configs[key[0]], self.begins.get(key[0]), outcomes.get(key)
            since = new_since(config, outcome, now=self.now, begins=begins)
            wanted.append(Wanted(key[0], get_module(key[1]), since, outcome))
        evidence = gather_evidence(self.phoenix, wanted, until=self.until)
        answers = {key: self._decide(key, evidence[key], outcomes.get(key)) for key in keys}
        return {key: answer for key, answer in answers.items() if isinstance(answer, ScheduleDecision)}

    def _decide(
        self, key: ModuleKey, evidence: Evidence | None = None, outcome: RunOutcome | None = None
    ) -> ScheduleDecision | NeedsEvidence:
        return decide(
            self.configs[key[0]],
            get_module(key[1]),
            self.attempts.get(key, Attempts()),
            evidence,
            outcome,
            now=self.now,
            jitter=self.settings.schedule_jitter,
            budgets=self.budgets.get(key[0], ()),
            models=_models(self.configs[key[0]], self.settings) if outcome else None,
            fall=self.falls.get(key),
        )


def _models(config: RoutingConfigUnified, settings: Settings) -> tuple[str, ...] | None:
    """The language models that a run could ask; None if none is configured here, which the run itself reports."""
    try:
        return answering_models(config, settings)
    except LMNotConfigured:
        return None


def failures_count_since(configs: Collection[RoutingConfigUnified], *, now: datetime) -> datetime:
    """From when on failed runs delay these tenants."""
    longest = max((config.interval_seconds(module) for config in configs for module in config.modules), default=0)
    return now - failure_horizon(timedelta(seconds=longest), MAX_BACKOFF)
