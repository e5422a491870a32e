"""Asks every source what `decide` needs, in few requests, and returns a decision for each (tenant, module)."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache

import dagster as dg

from autoopt_pipeline.errors import AutooptError, PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.modules.catalog import get_module, missing_module, modules
from autoopt_pipeline.orchestration.budget_guard import allowances
from autoopt_pipeline.run_history.outcomes import ModuleKey, failure_horizon, read_attempts, read_outcomes
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
"""Tenants that Phoenix is asked about before the clock is looked at: two documents of totals, and of counts at most
two for each module."""


@dataclass(frozen=True)
class Plan:
    """All decisions at one moment. Traces up to `window_end` were counted, and are what a run will read.

    `reached` is the last tenant that Phoenix was asked about where there was no time for all.
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
        """The run that was lost, where the module is tried again soon for that."""
        lost = self.attempts.get((tenant, module), Attempts()).lost
        return lost if lost and lost.times <= self.configs[tenant].retry.max_retries else None

    def run_key(self, tenant: str) -> str:
        """The same for the same attempt, another one for every new attempt.

        Dagster never launches a key twice, not even after a failure, so the key holds what changes with an
        attempt; and the hour, for failures are not looked up for ever, and somebody may wipe an outcome.
        """
        own = [
            [module, attempt.outcome_id, attempt.last_failed_run]
            for module in sorted(modules())
            if (attempt := self.attempts.get((tenant, module)))
        ]
        digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:16]
        return f"{tenant}/{digest}/{self.window_end:%Y-%m-%dT%H}"

    def counts(self) -> dict[str, int]:
        """How many (tenant, module) have each reason."""
        return dict(sorted(Counter(d.reason.value for d in self.decisions.values()).items()))

    def errors(self) -> dict[ModuleKey, ScheduleDecision]:
        return {key: d for key, d in self.decisions.items() if d.reason is Reason.ERROR}

    def missing(self) -> set[ModuleKey]:
        """The errors that are about a module which a configuration names and this process does not know."""
        return {key for key in self.errors() if key[1] != WHOLE_TENANT and key[1] not in modules()}


def plan_tenants(
    stored: Mapping[str, StoredConfig],
    instance: dg.DagsterInstance,
    phoenix: Phoenix,
    *,
    now: datetime,
    settings: Settings,
    only_modules: Collection[str] | None = None,
    count_all: bool = False,
    seconds: float | None = None,
    after: QueuePosition | None = None,
) -> Plan:
    """Decide for every tenant given. What is wrong with one tenant is that tenant's decision, nobody else's.

    Of the settings, the settling time, the jitter and the daily budget of all tenants count.

    When Phoenix fails, everything that only Phoenix could decide is an error; it is never taken for "no traces".
    `count_all` asks Phoenix also about modules that wait for something else, for people who want to see how far
    they are. With `seconds`, it takes about so long: Phoenix is asked about the tenants that have waited longest, or
    that come `after` the one that the last look had reached, and always about some. The others are left to the next
    looks.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    window_end = (now - timedelta(seconds=settings.settling_seconds)).replace(microsecond=0)
    decisions: dict[ModuleKey, ScheduleDecision] = {}
    configs: dict[str, RoutingConfigUnified] = {}
    for tenant, entry in stored.items():
        try:
            configs[tenant] = entry.parse()
        except AutooptError as e:
            decisions[tenant, WHOLE_TENANT] = ScheduleDecision(Reason.ERROR, str(e))
    failures_since = failures_count_since(configs.values(), now=now)
    begins = {tenant: entry.since for tenant, entry in stored.items() if entry.since}
    attempts = read_attempts(instance, modules(), failures_since=failures_since, tenants=configs, begins=begins)
    limits = allowances(instance, configs.values(), settings, now=now)

    def ask(
        key: ModuleKey, evidence: Evidence | None, outcome: RunOutcome | None = None
    ) -> ScheduleDecision | NeedsEvidence:
        return decide(
            configs[key[0]],
            get_module(key[1]),
            attempts.get(key, Attempts()),
            evidence,
            outcome,
            now=now,
            jitter=settings.schedule_jitter,
            allowances=limits.get(key[0], ()),
        )

    why_missing = cache(lambda module: str(missing_module(module)))
    pending: dict[str, list[str]] = {}
    since: dict[str, float] = {}
    for tenant, config in configs.items():
        for module in dict.fromkeys([*modules(), *config.modules]):
            if only_modules is not None and module not in only_modules:
                continue
            key = (tenant, module)
            if module not in modules():
                off = why_off(config, module)
                decisions[key] = (
                    ScheduleDecision(Reason.DISABLED, off)
                    if off
                    else ScheduleDecision(Reason.ERROR, why_missing(module))
                )
                continue
            answer = ask(key, None)
            if isinstance(answer, ScheduleDecision):
                decisions[key] = answer
            if isinstance(answer, NeedsEvidence) or (count_all and answer.reason is not Reason.DISABLED):
                pending.setdefault(tenant, []).append(module)
            if isinstance(answer, NeedsEvidence):
                moment = answer.since.timestamp() if answer.since else 0.0
                since[tenant] = min(moment, since.get(tenant, moment))
    turns = queue_order([(since.get(tenant, 0.0), tenant) for tenant in pending], after)
    reached, left, phoenix_error = None, turns, None
    while left and not (reached and deadline and time.monotonic() >= deadline):
        some, left = left[:_TENANTS_AT_ONCE], left[_TENANTS_AT_ONCE:]
        reached = some[-1]
        asked = {(tenant, module): configs[tenant] for _, tenant in some for module in pending[tenant]}
        try:
            decisions |= _decide_by_evidence(ask, asked, attempts, begins, instance, phoenix, now=now, until=window_end)
        except (PhoenixUnavailable, PhoenixRefused) as e:
            phoenix_error = e
            left = [*some, *left]
            break
    without = (
        ScheduleDecision(Reason.ERROR, str(phoenix_error))
        if phoenix_error
        else ScheduleDecision(Reason.DEFERRED, _DEFERRED)
    )
    for _, tenant in left:
        decisions |= {(tenant, module): without for module in pending[tenant] if (tenant, module) not in decisions}
    return Plan(
        window_end,
        dict(sorted(decisions.items())),
        attempts,
        configs,
        bool(pending),
        phoenix_error,
        reached if left else None,
    )


_DEFERRED = "the tick ran out of time; the next ticks count its traces"


def _decide_by_evidence(
    ask: Callable[[ModuleKey, Evidence, RunOutcome | None], ScheduleDecision | NeedsEvidence],
    pending: Mapping[ModuleKey, RoutingConfigUnified],
    attempts: Mapping[ModuleKey, Attempts],
    begins: Mapping[str, datetime],
    instance: dg.DagsterInstance,
    phoenix: Phoenix,
    *,
    now: datetime,
    until: datetime,
) -> dict[ModuleKey, ScheduleDecision]:
    outcomes = read_outcomes(instance, {key: attempts[key] for key in pending if key in attempts})
    wanted = [
        Wanted(
            tenant,
            get_module(module),
            new_since(config, outcomes.get((tenant, module)), now=now, begins=begins.get(tenant)),
            outcomes.get((tenant, module)),
        )
        for (tenant, module), config in pending.items()
    ]
    evidence = gather_evidence(phoenix, wanted, until=until)
    decided: dict[ModuleKey, ScheduleDecision] = {}
    for key in pending:
        answer = ask(key, evidence[key], outcomes.get(key))
        if isinstance(answer, ScheduleDecision):
            decided[key] = answer
    return decided


def failures_count_since(configs: Collection[RoutingConfigUnified], *, now: datetime) -> datetime:
    """From when on failed runs count for when these tenants are due."""
    longest = max((config.interval_seconds(module) for config in configs for module in config.modules), default=0)
    return now - failure_horizon(timedelta(seconds=longest), MAX_BACKOFF)
