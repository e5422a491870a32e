"""Collects what `decide` needs from every source, in few requests, and decides for each (tenant, module)."""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from math import inf

import dagster as dg

from autoopt_pipeline.errors import AutooptError, LMNotConfigured, PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.lm.choice import answering_models
from autoopt_pipeline.modules.catalog import get_module, missing_module, modules
from autoopt_pipeline.orchestration.budget_guard import remaining_budgets
from autoopt_pipeline.registry.quality_records import QualityFall
from autoopt_pipeline.run_history.outcomes import (
    AttemptIds,
    ModuleKey,
    attempts_by_ids,
    failure_horizon,
    read_attempt_ids,
    read_outcomes,
)
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
    holds_until,
    new_since,
    why_off,
    window_end_at,
)
from autoopt_pipeline.scheduling.fleet_memory import FleetMemory, Known, Turn
from autoopt_pipeline.scheduling.turns import QueuePosition, queue_order
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.counts import Wanted, gather_evidence
from autoopt_pipeline.traces.decision_counts import read_decision_counts

logger = logging.getLogger(__name__)

WHOLE_TENANT = "*"
"""Stands for all modules of a tenant whose configuration cannot be read."""

_DECIDED_AT_ONCE = 10_000
"""Tenants that a plan with limited time decides, at 0.3 ms each. A larger fleet is deferred where none is known yet, or
all change at once."""

_TENANTS_AT_ONCE = 100
"""Tenants that Phoenix is asked about before the deadline is checked: two documents of totals, and at most two of
counts for each module."""

_TOLD_LATE = timedelta(minutes=2)
"""How long what applications tell of their decisions may take to appear in Phoenix."""

_TOLD_SINCE = timedelta(minutes=15)
"""How far back that is read after Phoenix did not answer."""


@dataclass(frozen=True)
class Plan:
    """All decisions at one moment. Traces up to `window_end` were counted, and are what a run will read.

    `configs` and `attempts` are of the tenants that were decided now. `remembered` counts the modules of the others by
    reason. `reached` is the last tenant that Phoenix was asked about, if there was no time for all.
    """

    window_end: datetime
    decisions: dict[ModuleKey, ScheduleDecision]
    attempts: dict[ModuleKey, Attempts] = field(default_factory=dict)
    configs: dict[str, RoutingConfigUnified] = field(default_factory=dict)
    remembered: Counter[Reason] = field(default_factory=Counter)
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
        counts = Counter(decision.reason for decision in self.decisions.values()) + self.remembered
        return {reason.value: count for reason, count in sorted(counts.items())}

    def errors(self) -> dict[ModuleKey, ScheduleDecision]:
        return {key: d for key, d in self.decisions.items() if d.reason is Reason.ERROR}

    def missing(self) -> set[ModuleKey]:
        """The errors about modules that a configuration names and this process does not know."""
        return {key for key in self.errors() if key[1] != WHOLE_TENANT and key[1] not in modules()}


@dataclass(frozen=True)
class PlanOptions:
    """Which modules a plan is about (None: all), and what Phoenix is asked.

    `count_all` asks it also about modules that something else holds back, for people who want to see how far they are.
    With `seconds`, planning takes about so long: a limited number of tenants is decided, and Phoenix is asked about
    those that have waited longest, or that come `after` the last one of the previous tick, and always about some. The
    others are left to the next ticks. With the `memory` of earlier plans, only what may have changed is decided; each
    run and each error is decided anew.
    """

    only_modules: Collection[str] | None = None
    count_all: bool = False
    seconds: float | None = None
    after: QueuePosition | None = None
    memory: FleetMemory | None = None


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
    at_most = len(stored) if options.seconds is None else _DECIDED_AT_ONCE
    memory = options.memory or FleetMemory()
    memory.begin((instance.root_directory, settings, tuple(modules())), stored, now)
    same = {tenant for tenant, known in memory.known.items() if known.entry == stored[tenant]}
    new, memory.after_new = _in_turn(stored.keys() - same, memory.after_new, at_most)
    configs, unreadable = _parse_configs(stored, new)
    longest = max((memory.known[tenant].longest_interval for tenant in same), default=0)
    failures_since = failures_count_since(configs.values(), now=now, longest_interval=longest)
    ids = read_attempt_ids(instance, modules(), failures_since=failures_since, tenants=stored)
    marks = _Marks(ids, falls)
    expired = {tenant for tenant in same if not memory.known[tenant].holds(marks.of(tenant), now)}
    again, memory.after = _in_turn(expired, memory.after, at_most - len(new))
    holding = same - expired
    begins = {tenant: entry.since for tenant, entry in stored.items() if entry.since}
    planner = _Planner(
        instance=instance,
        phoenix=phoenix,
        now=now,
        until=window_end_at(now, settings.settling_seconds),
        settings=settings,
        stored=stored,
        begins=begins,
        configs=configs,
        marks=marks,
        falls={key: fall for key, fall in falls.items() if fall.at >= begins.get(key[0], fall.at)},
        memory=memory,
    )
    decided = unreadable | planner.decide_without_traces([*configs, *again], options)
    counted = planner.decide_with_traces(holding, deadline, options.after, hear=options.memory is not None)
    remembered = counted.remembered
    remembered[Reason.DEFERRED] += (len(stored) - len(holding) - len(new) - len(again)) * len(modules())
    return Plan(
        window_end=planner.until,
        decisions=dict(sorted((counted.left | decided | counted.decisions).items())),
        attempts=planner.attempts,
        configs=planner.configs,
        remembered=remembered,
        phoenix_asked=counted.asked,
        phoenix_error=counted.error,
        reached=counted.reached,
    )


def _parse_configs(
    stored: Mapping[str, StoredConfig], tenants: Iterable[str]
) -> tuple[dict[str, RoutingConfigUnified], dict[ModuleKey, ScheduleDecision]]:
    """The configurations that can be read, and an error for each tenant whose configuration cannot."""
    configs: dict[str, RoutingConfigUnified] = {}
    unreadable: dict[ModuleKey, ScheduleDecision] = {}
    for tenant in tenants:
        try:
            configs[tenant] = stored[tenant].parse()
        except AutooptError as e:
            unreadable[tenant, WHOLE_TENANT] = ScheduleDecision(Reason.ERROR, str(e))
    return configs, unreadable


def _in_turn(tenants: Iterable[str], after: str | None, at_most: int) -> tuple[list[str], str | None]:
    """The next of these tenants, and the one after which the next plan continues."""
    queue = queue_order(list(tenants), after)[: max(0, at_most)]
    return queue, queue[-1] if queue else after


class _Marks:
    """What a tenant's decisions depend on besides its configuration: its attempts, and falls in quality."""

    def __init__(self, ids: AttemptIds, falls: Mapping[ModuleKey, QualityFall]) -> None:
        self.ids = ids
        self._falls: dict[str, tuple[object, ...]] = {}
        for (tenant, module), fall in falls.items():
            self._falls[tenant] = (*self._falls.get(tenant, ()), module, fall.at)

    def of(self, tenant: str) -> tuple[object, ...]:
        return (*self.ids.mark(tenant), *self._falls.get(tenant, ()))


@dataclass(frozen=True)
class _Counted:
    """What Phoenix decided, the modules that were left out, and the last tenant that it was asked about in turn.

    `remembered` counts the modules that were not decided anew, by reason.
    """

    decisions: dict[ModuleKey, ScheduleDecision]
    left: dict[ModuleKey, ScheduleDecision]
    remembered: Counter[Reason]
    asked: bool
    reached: QueuePosition | None
    error: PhoenixUnavailable | PhoenixRefused | None


_DEFERRED = ScheduleDecision(Reason.DEFERRED, "the tick ran out of time; the next ticks count its traces")


@dataclass
class _Planner:
    """Decides for tenants. `configs`, `attempts` and `budgets` are of those that it has read so far."""

    instance: dg.DagsterInstance
    phoenix: Phoenix
    now: datetime
    until: datetime
    settings: Settings
    stored: Mapping[str, StoredConfig]
    begins: Mapping[str, datetime]
    configs: dict[str, RoutingConfigUnified]
    marks: _Marks
    falls: Mapping[ModuleKey, QualityFall]
    memory: FleetMemory
    attempts: dict[ModuleKey, Attempts] = field(default_factory=dict)
    budgets: Mapping[str, tuple[RemainingBudget, ...]] = field(default_factory=dict)

    def decide_without_traces(self, tenants: Sequence[str], options: PlanOptions) -> dict[ModuleKey, ScheduleDecision]:
        """What configuration, history and limits decide. It is remembered, with the modules that need traces."""
        decisions = self._read(tenants)
        self.budgets = remaining_budgets(self.instance, self.configs.values(), self.settings, now=self.now)
        why_missing = cache(lambda module: str(missing_module(module)))
        for tenant, config in self.configs.items():
            own: dict[str, ScheduleDecision] = {}
            to_count: list[str] = []
            waiting_since: list[float] = []
            until = inf
            for module in dict.fromkeys([*modules(), *config.modules]):
                if options.only_modules is not None and module not in options.only_modules:
                    continue
                if module not in modules():
                    off = why_off(config, module)
                    own[module] = ScheduleDecision(Reason.DISABLED if off else Reason.ERROR, off or why_missing(module))
                    until = until if off else 0.0
                    continue
                answer = self._decide((tenant, module))
                until = min(until, self._holds_until((tenant, module), answer))
                if isinstance(answer, NeedsEvidence):
                    waiting_since.append(answer.since.timestamp() if answer.since else 0.0)
                    to_count.append(module)
                    continue
                own[module] = answer
                if options.count_all and answer.reason is not Reason.DISABLED:
                    to_count.append(module)
            decisions |= {(tenant, module): decision for module, decision in own.items()}
            self.memory.known[tenant] = Known(
                entry=self.stored[tenant],
                mark=self.marks.of(tenant),
                until=until,
                longest_interval=_longest_interval([config]),
                reasons=tuple(decision.reason for decision in own.values()),
                pending=tuple(to_count),
                since=min(waiting_since, default=0.0),
                missing=tuple((get_module(each).contract.span_name, config.min_samples(each)) for each in to_count),
            )
        return decisions

    def decide_with_traces(
        self, remembered: Collection[str], deadline: float | None, after: QueuePosition | None, *, hear: bool
    ) -> _Counted:
        """Count what is new, many tenants at a time, until all are done, the deadline is over or Phoenix fails.

        Phoenix is asked about tenants that were decided now, and about `remembered` ones. With `hear`, those whose
        applications tell of enough decisions come first.
        """
        error: PhoenixUnavailable | PhoenixRefused | None = self._hear() if hear else None
        known, just_decided = self.memory.known, [*self.configs]
        counts = Counter(reason for tenant in remembered for reason in known[tenant].reasons)
        turns: dict[Turn, list[QueuePosition]] = {turn: [] for turn in Turn}
        for tenant in (*just_decided, *remembered):
            if known[tenant].pending:
                turns[self.memory.turn(tenant, self.now)].append((known[tenant].since, tenant))
        counts[Reason.TOO_FEW_TRACES] += sum(len(known[tenant].pending) for _, tenant in turns[Turn.LATER])
        first = queue_order(turns[Turn.FIRST], None)
        queue = first + queue_order(turns[Turn.NEXT], after)
        decisions: dict[ModuleKey, ScheduleDecision] = {}
        done, reached = 0, after
        while not error and done < len(queue) and not (done and deadline is not None and time.monotonic() >= deadline):
            batch = queue[done : done + _TENANTS_AT_ONCE]
            if done + len(batch) > len(first):
                reached = batch[-1]
            try:
                decisions |= self._count_tenants([tenant for _, tenant in batch])
            except (PhoenixUnavailable, PhoenixRefused) as e:
                error = e
                break
            done += len(batch)
        left: dict[ModuleKey, ScheduleDecision] = {}
        uncounted = ScheduleDecision(Reason.ERROR, str(error)) if error else _DEFERRED
        for _, tenant in queue[done:]:
            if error or tenant not in remembered:
                left |= {(tenant, module): uncounted for module in known[tenant].pending}
            else:
                counts[Reason.DEFERRED] += len(known[tenant].pending)
        return _Counted(decisions, left, counts, hear or bool(queue), reached if done < len(queue) else None, error)

    def _hear(self) -> PhoenixUnavailable | None:
        """Remember what applications told of their decisions since the last plan.

        Returns the error if Phoenix does not answer, because a tick has no time to wait for it twice.
        """
        memory = self.memory
        start = max((memory.told_until or self.until) - _TOLD_LATE, self.until - _TOLD_SINCE)
        try:
            counts, memory.heard = read_decision_counts(self.phoenix, start=start, end=self.until, but=memory.heard)
        except PhoenixUnavailable as e:
            return e
        except PhoenixRefused as e:
            logger.warning("what applications tell of their decisions is not read: %s", e)
            counts = {}
        memory.told_until = self.until
        memory.tell(counts, self.stored.keys())
        return None

    def _read(self, tenants: Sequence[str]) -> dict[ModuleKey, ScheduleDecision]:
        """Read configurations and attempts. Returns an error for each tenant whose configuration cannot be read."""
        configs, unreadable = _parse_configs(self.stored, [each for each in tenants if each not in self.configs])
        self.configs |= configs
        readable = [tenant for tenant in tenants if tenant in self.configs]
        self.attempts |= attempts_by_ids(self.instance, self.marks.ids, tenants=readable, begins=self.begins)
        return unreadable

    def _count_tenants(self, tenants: Sequence[str]) -> dict[ModuleKey, ScheduleDecision]:
        """Count what is new of tenants, decide, and remember what is still missing."""
        self._read([tenant for tenant in tenants if tenant not in self.configs])
        pending = {tenant: self.memory.known[tenant].pending for tenant in tenants}
        answers = self._count([(tenant, module) for tenant, names in pending.items() for module in names])
        for tenant, names in pending.items():
            own = {module: answers[tenant, module] for module in names if (tenant, module) in answers}
            if any(answer.launch for answer in own.values()):
                continue  # it is first again until its run has begun
            missing = [
                (get_module(module).contract.span_name, answer.need - answer.counted)
                for module, answer in own.items()
                if answer.reason is Reason.TOO_FEW_TRACES and answer.need is not None
            ]
            by_reviews = any(answer.awaits_reviews for answer in own.values())
            self.memory.answered(tenant, None if by_reviews else missing, self.now)
        return answers

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

    def _holds_until(self, key: ModuleKey, answer: ScheduleDecision | NeedsEvidence) -> float:
        moment = holds_until(
            self.configs[key[0]],
            key[1],
            self.attempts.get(key, Attempts()),
            answer,
            now=self.now,
            budgets=self.budgets.get(key[0], ()),
            fall=self.falls.get(key),
        )
        return moment.timestamp() if moment else inf


def _models(config: RoutingConfigUnified, settings: Settings) -> tuple[str, ...] | None:
    """The language models that a run could ask; None if none is configured here, which the run itself reports."""
    try:
        return answering_models(config, settings)
    except LMNotConfigured:
        return None


def failures_count_since(
    configs: Collection[RoutingConfigUnified], *, now: datetime, longest_interval: int = 0
) -> datetime:
    """From when on failed runs delay these tenants, and others with an interval of so many seconds."""
    longest = max(longest_interval, _longest_interval(configs))
    return now - failure_horizon(timedelta(seconds=longest), MAX_BACKOFF)


def _longest_interval(configs: Collection[RoutingConfigUnified]) -> int:
    return max((config.interval_seconds(module) for config in configs for module in config.modules), default=0)
