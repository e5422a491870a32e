"""Plays the loop over past traces, night by night, with the functions that production uses.

Each night sees only what was known then: no later trace and no later annotation. Runs write to a scratch store, so
nothing of the tenant changes. Rollouts are not played, because past traffic has no decisions of a version that never
served: a proven candidate is active at once.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

from autoopt_pipeline.clients import Connections, active_parts
from autoopt_pipeline.errors import AnswersUnreadable, BudgetTooSmall, LMNotConfigured, LMUnavailable
from autoopt_pipeline.evaluation.sequential_test_log import oldest_awaiting
from autoopt_pipeline.lm.choice import answering_models
from autoopt_pipeline.lm.metering import Meter, Role
from autoopt_pipeline.lm.models import lms_of_run
from autoopt_pipeline.lm.progress import ProgressCallback
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.redaction import Redact, load_redaction
from autoopt_pipeline.modules.spec import LoggedDecision, ModuleSpec
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.backtests import MOST_TEXT, Night, PlayedNights
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.past_versions import copy_as_of
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.reviews.order import to_review
from autoopt_pipeline.scheduling.budgets import LMUsage, RemainingBudget
from autoopt_pipeline.scheduling.conditions import (
    Attempts,
    NeedsEvidence,
    RunOutcome,
    ScheduleDecision,
    decide,
    learnt_from,
    new_since,
    window_end_at,
)
from autoopt_pipeline.scheduling.windows import quiet_until
from autoopt_pipeline.secrets import scrub
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import Budget, DailyBudget, RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.traces.counts import Wanted
from autoopt_pipeline.traces.past import PastTraces, read_past

NIGHT = timedelta(days=1)

_ONLY_WATCHING = frozenset({"off", "observe"})


class AllowanceSpent(BaseException):
    """All calls of a backtest are spent. A BaseException as `BudgetExhausted`, and not taken for a run's own budget."""


class Allowance:
    """The calls to language models that a whole backtest may make, and what it has used. Threads can share it."""

    def __init__(self, max_calls: int) -> None:
        self.max_calls, self.calls = max_calls, 0
        self._meters: list[Meter] = []
        self._lock = threading.Lock()

    @property
    def tokens(self) -> int:
        return sum(meter.tokens for meter in self._meters)

    def meter(self, budget: Budget) -> Meter:
        """Return a meter for one run, with the budget that the run has in production."""
        meter = _RunMeter(budget.max_lm_calls, budget.max_tokens, budget.max_dollars, allowance=self)
        self._meters.append(meter)
        return meter

    def admit(self, meter: Meter, role: Role) -> None:
        """Count a call here and in the meter of its run. Raises `AllowanceSpent`, else `BudgetExhausted`."""
        with self._lock:
            if self.calls >= self.max_calls:
                raise AllowanceSpent
            Meter.admit(meter, role)
            self.calls += 1


@dataclass
class _RunMeter(Meter):
    allowance: Allowance = field(kw_only=True)

    def admit(self, role: Role) -> None:
        self.allowance.admit(self, role)


@dataclass(frozen=True)
class Scenario:
    """What is played: settings of a tenant on past traces of its modules, from what `scratch` holds at the start.

    Events before `begins` (UTC) do not count for the tenant. Modules come after their parts.
    """

    config: RoutingConfigUnified
    past: Mapping[str, PastTraces]
    scratch: ObjectStore
    settings: Settings
    begins: datetime | None = None


def nights_until(end: datetime, days: int) -> list[datetime]:
    """Return the moments at which the conditions are checked: `end`, and each 24 hours before it, oldest first."""
    return [end - NIGHT * earlier for earlier in range(days - 1, -1, -1)]


def open_scenarios(
    connections: Connections,
    entry: StoredConfig,
    configs: Sequence[RoutingConfigUnified],
    modules: Collection[str],
    nights: Sequence[datetime],
    folder: Path,
) -> list[Scenario]:
    """Read the past once, and prepare one scenario for each configuration of a tenant, in a new folder of its own.

    Each starts from what the artifact store had one night before the first one. Raises the errors of Phoenix and of the
    stores, and `UnknownModule`.
    """
    tenant, settings, specs = entry.tenant_id, connections.settings, [get_module(module) for module in modules]
    first = window_end_at(nights[0], settings.settling_seconds)
    read_from = [learnt_from(config, until=first, begins=entry.since) for config in configs]
    scratches = []
    for place in range(len(configs)):
        scratch = ObjectStore(str(folder / str(place)))
        for name in {part.name for spec in specs for part in (spec, *spec.parts)}:
            copy_as_of(connections.files, scratch, tenant, name, nights[0] - NIGHT)
            awaiting = oldest_awaiting(VersionStore(scratch, tenant, name))
            read_from += [awaiting] if awaiting else []
        scratches.append(scratch)
    past = {
        spec.name: read_past(connections.phoenix, tenant, spec, start=min(read_from), end=nights[-1]) for spec in specs
    }
    return [
        Scenario(config, past, scratch, settings, entry.since)
        for config, scratch in zip(configs, scratches, strict=True)
    ]


def play_all(
    scenarios: Sequence[Scenario],
    nights: Sequence[datetime],
    allowance: Allowance,
    *,
    show: Callable[[int], None] = lambda done: None,
    on_progress: ProgressCallback | None = None,
) -> tuple[list[dict[str, PlayedNights]], str]:
    """Play scenarios side by side, so that a spent allowance ends all of them at about the same night.

    Return what was played of each, by module, and why it ended early, "" if it did not. A model that fails in the
    first night raises its error; later it ends the backtest early. `show` gets the number of nights that are
    done, and `on_progress` the progress within one. Raises as `play` does.
    """
    kept: list[dict[str, PlayedNights]] = [{name: _before(each, name) for name in each.past} for each in scenarios]
    playing = [play(scenario, nights, allowance, on_progress) for scenario in scenarios]
    for done, night in enumerate(nights):
        show(done)
        in_night = f"in the night of {night:%Y-%m-%d}"
        try:
            for modules, nights_of in zip(kept, playing, strict=True):
                for name, found in next(nights_of).items():
                    modules[name] = modules[name].followed_by(found)
        except AllowanceSpent:
            spent = f"the budget of {allowance.max_calls} LM calls was spent"
            return kept, f"{spent} {in_night}; --max-calls allows more"
        except (LMUnavailable, LMNotConfigured) as e:
            if not done:
                raise
            return kept, _text(f"{in_night}, {e}")
    return kept, ""


def _before(scenario: Scenario, module: str) -> PlayedNights:
    """Return what there is before the first night."""
    active = VersionStore(scenario.scratch, scenario.config.tenant_id, module).active()
    lms = lms_of_run(scenario.config, scenario.settings, Meter(0, 0, scenario.config.budget.max_dollars))
    return PlayedNights(
        lm=tuple(lms.answering.models),
        stand_in=lms.answering.is_stand_in,
        starts_from=active.version if active else None,
        nights=(),
    )


def play(
    scenario: Scenario,
    nights: Sequence[datetime],
    allowance: Allowance,
    on_progress: ProgressCallback | None = None,
) -> Iterator[dict[str, Night]]:
    """Yield what would have happened each night, by module. `on_progress` gets the progress of a long step.

    A night in quiet hours is put off until they end. Raises `AllowanceSpent` when a call is not allowed any more, and
    what production raises if a model or a setting is not usable.
    """
    clock = _Clock(nights[0])
    redact = cache(load_redaction(scenario.settings.redaction))
    specs = sorted((past.spec for past in scenario.past.values()), key=lambda spec: bool(spec.parts))
    players = [_Player(scenario, spec, clock, redact, allowance, on_progress) for spec in specs]
    for night, following in zip(nights, [*nights[1:], nights[-1]], strict=True):
        later = quiet_until(scenario.config.quiet_hours, night)
        clock.now = later if later and later < following else night
        decisions = [player.decide() for player in players]
        due = sum(decision.launch for decision in decisions)
        yield {
            player.spec.name: player.run(decision, due) if decision.launch else player.night(decision)
            for player, decision in zip(players, decisions, strict=True)
        }


@dataclass
class _Clock:
    """The moment that is played (UTC)."""

    now: datetime


class _Player:
    """Plays one module. It has the state that production keeps in Dagster's event log."""

    def __init__(
        self,
        scenario: Scenario,
        spec: ModuleSpec,
        clock: _Clock,
        redact: Redact,
        allowance: Allowance,
        on_progress: ProgressCallback | None,
    ) -> None:
        self.spec, self.settings, self.begins = spec, scenario.settings, scenario.begins
        self.config = _without_rollouts(turned_on(scenario.config, spec.name), spec)
        self.past = scenario.past[spec.name]
        self.clock, self.redact, self.allowance, self.on_progress = clock, redact, allowance, on_progress
        self.scratch = scenario.scratch
        self.artifacts = self._artifacts(spec.name)
        self.attempts = Attempts()
        self.outcome: RunOutcome | None = None

    def decide(self) -> ScheduleDecision:
        """Decide as the sensor would have, without jitter, which would only move the run to another hour."""
        now, outcome = self.clock.now, self.outcome
        since = new_since(self.config, outcome, now=now, begins=self.begins)
        until = window_end_at(now, self.settings.settling_seconds)
        wanted = Wanted(self.config.tenant_id, self.spec, since, outcome)
        decision = decide(
            self.config,
            self.spec,
            self.attempts,
            self.past.evidence(wanted, until=until, at=now),
            outcome,
            now=now,
            budgets=_whole_day(self.config),
            models=answering_models(self.config, self.settings) if outcome else None,
        )
        if isinstance(decision, NeedsEvidence):
            raise TypeError("the evidence was given")
        return decision

    def night(self, decision: ScheduleDecision, **found: object) -> Night:
        told = {"decision": decision.reason.value, "detail": _text(decision.detail)}
        return Night.model_validate({"at": self.clock.now, **told, **found})

    def run(self, decision: ScheduleDecision, side_by_side: int) -> Night:
        """Optimize as a run would have that night, beside others. A run that fails is a night without a verdict."""
        now = self.clock.now
        budget = _capped(self.config, side_by_side)
        meter = self.allowance.meter(budget)
        steps_before = self.artifacts.last_sequential_test_step()
        try:
            report, decisions = self._optimize(budget, meter)
        except (BudgetTooSmall, AnswersUnreadable) as e:
            # What an unreadable answer said may quote a trace, and stored backtests quote none.
            why = str(e) if isinstance(e, BudgetTooSmall) else "hardly any answer of the language model can be read"
            failures = self.attempts.failures + 1
            self.attempts = replace(self.attempts, failures=failures, last_failure_at=now)
            return self.night(decision, failed=_text(why), **_usage(meter))
        self.attempts = Attempts(outcome_at=now)
        comparison = report.gate.comparison if report.gate else None
        return self.night(
            decision,
            verdict=report.verdict.value,
            reason=_text(report.reason),
            incumbent_version=report.incumbent_version,
            version=report.version,
            optimizer=report.optimizer,
            incumbent_score=comparison.incumbent_score if comparison else None,
            candidate_score=comparison.candidate_score if comparison else None,
            traces=report.decisions,
            reviews_used=comparison.reviews if comparison else 0,
            reviews_asked=self._asked_since(steps_before, decisions),
            reviews_needed=report.reviews_needed,
            **_usage(meter),
        )

    def _optimize(self, budget: Budget, meter: Meter) -> tuple[Report, Sequence[LoggedDecision]]:
        """Run as the module's asset does, and keep the outcome. Also return the decisions that were read."""
        config, now = self.config, self.clock.now
        end = window_end_at(now, self.settings.settling_seconds)
        start = learnt_from(config, until=end, begins=self.begins)
        awaiting = oldest_awaiting(self.artifacts)
        collected = self.past.collected(start=min(start, awaiting or start), end=end, at=now)
        collected = collected.without(frozenset(config.excluded_traces))
        lms = lms_of_run(config, self.settings, meter)
        run_id = f"backtest {now.isoformat()}"
        job = OptimizationJob(
            self.spec,
            config.model_copy(update={"budget": budget}),
            collected.decisions,
            start,
            end,
            run_id,
            redact=self.redact,
            parts=active_parts(self._artifacts, self.spec, lambda part, why: None),
            encoder=self.settings.encoder,
        )
        report = optimize(
            job,
            lms.answering,
            self.artifacts,
            teacher=lms.teacher,
            lm_judge=lms.judge,
            on_progress=self.on_progress,
        )
        self.outcome = RunOutcome(
            window_end=end,
            annotations=collected.annotations,
            verdict=report.verdict.value,
            decisions=report.decisions,
            labels=frozenset(label.name for label in labels_of(self.spec, config)),
            models=(report.lm, *report.other_lms),
            version=report.version,
            reviews_needed=report.reviews_needed,
        )
        return report, collected.decisions

    def _asked_since(self, step: int, decisions: Sequence[LoggedDecision]) -> int:
        """Count the traces that people are asked about since a step of the sequential tests."""
        reviewed = {each.span_id for each in decisions if any(a.kind == "HUMAN" for a in each.annotations)}
        new = [drawn for drawn in self.artifacts.sequential_test() if drawn.sequence > step]
        return sum(trace.span_id not in reviewed for drawn in new for trace in to_review(drawn.drawn))

    def _artifacts(self, module: str) -> VersionStore:
        return VersionStore(self.scratch, self.config.tenant_id, module, clock=lambda: self.clock.now)


def turned_on(config: RoutingConfigUnified, module: str | None = None) -> RoutingConfigUnified:
    """Return the settings as they would be in mode `auto`, where they are `off` or `observe`, or all is turned off.

    That is what people who have not turned it on want to see. With `module`, its own mode is changed as well.
    """
    mode = "auto" if config.mode in _ONLY_WATCHING else config.mode
    config = config.model_copy(update={"enable_auto_optimization": True, "mode": mode})
    if module is None or config.mode_of(module) not in _ONLY_WATCHING:
        return config
    settings = config.modules[module].model_copy(update={"mode": "auto"})
    return config.model_copy(update={"modules": {**config.modules, module: settings}})


def _without_rollouts(config: RoutingConfigUnified, spec: ModuleSpec) -> RoutingConfigUnified:
    """Return the settings without rollouts, except that live evidence needs one, which then stays open."""
    if config.evidence_for(spec.name) == "live":
        return config
    rollout = config.rollout.model_copy(update={"monitor": False, "canary_fraction": 0.0})
    return config.model_copy(update={"rollout": rollout})


def _whole_day(config: RoutingConfigUnified) -> tuple[RemainingBudget, ...]:
    """Return the tenant's budget of a day of which nothing is used yet, as there is one night a day."""
    if config.daily_budget == DailyBudget():
        return ()
    return (RemainingBudget("this tenant", config.daily_budget, LMUsage()),)


def _capped(config: RoutingConfigUnified, side_by_side: int) -> Budget:
    budget = config.budget
    for daily in _whole_day(config):
        budget = daily.cap(budget, side_by_side)
    return budget


def _usage(meter: Meter) -> dict[str, int | float | None]:
    return {"lm_calls": meter.calls, "lm_tokens": meter.tokens, "lm_dollars": meter.dollars}


def _text(text: str) -> str:
    return scrub(text)[:MOST_TEXT]
