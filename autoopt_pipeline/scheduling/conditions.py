"""When a tenant's module is due. Pure: plain values in, a decision with its reason out.

The sensor, the commands and the dashboard all call `decide`, so they cannot disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from autoopt_pipeline.durations import as_duration
from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.registry.quality_records import QualityFall
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.scheduling.annotation_counts import AnnotationsSeen
from autoopt_pipeline.scheduling.budgets import RemainingBudget, utc_day_start
from autoopt_pipeline.scheduling.evidence_backoff import evidence_required
from autoopt_pipeline.scheduling.windows import quiet_until, spread
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import MIN_LABELS
from autoopt_pipeline.text import duration

MAX_BACKOFF = timedelta(hours=6)
"""Longest wait after repeated failures, unless the tenant's own interval is longer."""

CLOCK_TOLERANCE = timedelta(minutes=5)
"""A moment further in the future than this comes from a clock that was wrong."""


class Reason(StrEnum):
    DUE = "due"
    QUALITY_FELL = "quality_fell"
    DISABLED = "disabled"
    NOT_DUE = "not_due"
    TOO_FEW_TRACES = "too_few_traces"
    IN_PROGRESS = "in_progress"
    BACKING_OFF = "backing_off"
    QUIET_HOURS = "quiet_hours"
    BUDGET_EXHAUSTED = "budget_exhausted"
    AWAITING_REVIEWS = "awaiting_reviews"
    DEFERRED = "deferred"
    ERROR = "error"


LAUNCHING = frozenset({Reason.DUE, Reason.QUALITY_FELL})
"""The reasons for a run now."""


@dataclass(frozen=True)
class LostRun:
    """A run that failed without reporting an error: it or one of its steps was killed, or it never began.

    `times` counts such runs in a row, `attempt` is the first of them, and `window_end` (UTC) is the end of the traces
    that it was requested to read; None where none was requested.
    """

    times: int
    attempt: str
    window_end: datetime | None


@dataclass(frozen=True)
class Attempts:
    """A module's runs: when the last one had an outcome, how many have failed since, and which one is under way.

    `outcome_id` and `last_failed_run` identify an attempt. `lost` is the last failed run, if it was lost.
    """

    outcome_at: datetime | None = None
    outcome_id: int | None = None
    failures: int = 0
    last_failure_at: datetime | None = None
    last_failed_run: str | None = None
    lost: LostRun | None = None
    running: str | None = None


@dataclass(frozen=True)
class RunOutcome:
    """The outcome of the last run: it read traces before `window_end` (UTC), and annotations, where known.

    `decisions` is the number of logged decisions, `labels` are the possible answers of its program, `models` are the
    language models that it could ask, the tenant's own first, and `version` is what it made. If it awaits reviews, a
    decision is possible after `reviews_needed` more at the soonest.
    """

    window_end: datetime
    annotations: AnnotationsSeen | None
    verdict: str = ""
    decisions: int = 0
    labels: frozenset[str] | None = None
    models: tuple[str, ...] | None = None
    version: str | None = None
    reviews_needed: int = 0


@dataclass(frozen=True)
class Evidence:
    """New traces and annotations in Phoenix since the last outcome; `note` names what is odd about the project."""

    new_traces: int
    new_annotations: int = 0
    note: str = ""

    @property
    def total(self) -> int:
        return self.new_traces + self.new_annotations


@dataclass(frozen=True)
class Condition:
    """One condition for a run, with the numbers behind it.

    `met` is None where only Phoenix could tell and was not asked. Where the condition is not met, the decision is
    `otherwise`, and `until` is when that ends. `need` is how much new evidence makes a module due.
    """

    name: str
    met: bool | None
    detail: str
    otherwise: Reason
    until: datetime | None = None
    need: int | None = None


@dataclass(frozen=True)
class ScheduleDecision:
    """Whether to optimize now, and why or why not, with the numbers behind it.

    `conditions` are in the order in which they decide; an error has none.
    """

    reason: Reason
    detail: str
    evidence: Evidence | None = None
    need: int | None = None
    until: datetime | None = None
    waiting_since: datetime | None = None
    conditions: tuple[Condition, ...] = ()

    @property
    def launch(self) -> bool:
        return self.reason in LAUNCHING

    @property
    def awaits_reviews(self) -> bool:
        """Whether `need` is a number of reviews, so that nothing else counts as new evidence."""
        return bool(self.conditions) and self.conditions[-1].otherwise is Reason.AWAITING_REVIEWS

    @property
    def counted(self) -> int:
        """How much of the needed evidence is there."""
        if self.evidence is None:
            return 0
        return self.evidence.new_annotations if self.awaits_reviews else self.evidence.total

    @property
    def needed(self) -> str:
        """What is counted, in words."""
        return "new reviews" if self.awaits_reviews else "new traces and annotations"


@dataclass(frozen=True)
class NeedsEvidence:
    """All other conditions are met, since `since` (None: always): count what is new and decide again."""

    since: datetime | None


def decide(  # noqa: PLR0913 - plain values, so that the function stays pure
    config: RoutingConfigUnified,
    spec: ModuleSpec,
    attempts: Attempts,
    evidence: Evidence | None,
    outcome: RunOutcome | None = None,
    *,
    now: datetime,
    jitter: float = 0.0,
    budgets: Sequence[RemainingBudget] = (),
    models: tuple[str, ...] | None = None,
    fall: QualityFall | None = None,
) -> ScheduleDecision | NeedsEvidence:
    """Check the conditions in the order of their cost: configuration, history, limits, then Phoenix.

    `jitter` is the share of the interval over which tenants are spread, and `budgets` bound the tenant's LM usage
    today. `models` are the language models that a run could ask now, as in `RunOutcome`. With `evidence` None, the
    answer is `NeedsEvidence` where only Phoenix can decide; `outcome` is the last one, where there is any, and only
    asked together with the evidence, as `models` are. `fall` is the last fall in quality of what serves.
    """
    later = spread(config.tenant_id, timedelta(seconds=config.interval_seconds(spec.name)), jitter)
    urgent = _urgent(config, spec.name, attempts, fall, now)
    conditions = (
        _enabled(config, spec),
        _alone(attempts),
        _backed_off(config, spec, attempts, later, now),
        _interval_over(config, spec, attempts, urgent, later, now),
        _outside_quiet_hours(config, now),
        _within_budget(budgets, now),
        _enough_new(config, spec, evidence, outcome, urgent, now, models),
    )
    need = conditions[-1].need
    unmet = next((condition for condition in conditions if not condition.met), None)
    if unmet is None or unmet.met is None:
        since = urgent.since if urgent else _due_at(config, spec.name, attempts, later)
        if unmet:
            return NeedsEvidence(since)
        detail = conditions[-1].detail
        reason = urgent.reason if urgent else Reason.DUE
        return ScheduleDecision(reason, detail, evidence, need, waiting_since=since, conditions=conditions)
    return ScheduleDecision(unmet.otherwise, unmet.detail, evidence, need, unmet.until, conditions=conditions)


_HOLDING = frozenset(
    {Reason.DISABLED, Reason.IN_PROGRESS, Reason.BACKING_OFF, Reason.NOT_DUE, Reason.QUIET_HOURS},
)


def holds_until(
    config: RoutingConfigUnified,
    module: str,
    attempts: Attempts,
    answer: ScheduleDecision | NeedsEvidence,
    *,
    now: datetime,
    budgets: Sequence[RemainingBudget] = (),
    fall: QualityFall | None = None,
) -> datetime | None:
    """Until when `decide` gives the same reason without evidence, if nothing else happens; None: for ever.

    The moment is `now` where an answer may change with the next usage of a budget, or once a wrong clock is forgotten.
    """
    if isinstance(answer, NeedsEvidence):
        holding, until = not config.quiet_hours and not budgets, None
    else:
        holding, until = answer.reason in _HOLDING, answer.until
    unbelieved = (attempts.outcome_id is not None and attempts.outcome_at is None) or (
        attempts.failures > 0 and attempts.last_failure_at is None
    )
    if unbelieved or not holding:
        return now
    moments = (until, config.retrain_after(module), fall.at if fall else None)
    return min((moment for moment in moments if moment and moment > now), default=None)


def new_since(
    config: RoutingConfigUnified, outcome: RunOutcome | None, *, now: datetime, begins: datetime | None = None
) -> datetime:
    """From when on traces are new: the end of what the last run read, within the lookback."""
    earliest = learnt_from(config, until=now, begins=begins)
    return max(outcome.window_end, earliest) if outcome and believable(outcome.window_end, now) else earliest


def window_end_at(now: datetime, settling_seconds: float) -> datetime:
    """Until when traces count at a moment: later ones may not be complete in Phoenix yet."""
    return (now - timedelta(seconds=settling_seconds)).replace(microsecond=0)


def learnt_from(config: RoutingConfigUnified, *, until: datetime, begins: datetime | None) -> datetime:
    """Where the traces of a run begin: at the lookback, and not before the tenant."""
    earliest = until - timedelta(seconds=config.lookback_seconds)
    return min(max(earliest, begins), until) if begins else earliest


def believable(moment: datetime, now: datetime) -> bool:
    """Whether a moment can be true. A clock that ran ahead during one run must not hold the tenant back until then."""
    return moment <= now + CLOCK_TOLERANCE


# Conditions that most modules share are made once, because fifty thousand modules are checked every minute.
_ENABLED = Condition("enabled", True, "enabled", Reason.DISABLED)
_ALONE = Condition("no other run", True, "no run of this tenant is under way", Reason.IN_PROGRESS)
_NOTHING_FAILED = Condition("no back-off", True, "nothing failed since the last outcome", Reason.BACKING_OFF)
_NO_QUIET_HOURS = Condition("no quiet hours", True, "no quiet hours now", Reason.QUIET_HOURS)
_BUDGET_LEFT = Condition("budget left", True, "no budget of the day is spent", Reason.BUDGET_EXHAUSTED)
_NOT_COUNTED = Condition("enough new traces", None, "not counted", Reason.TOO_FEW_TRACES)


def _enabled(config: RoutingConfigUnified, spec: ModuleSpec) -> Condition:
    why = _why_disabled(config, spec)
    return Condition("enabled", False, why, Reason.DISABLED) if why else _ENABLED


def _alone(attempts: Attempts) -> Condition:
    if not attempts.running:
        return _ALONE
    return Condition("no other run", False, f"run {attempts.running} of this tenant is under way", Reason.IN_PROGRESS)


def _backed_off(
    config: RoutingConfigUnified, spec: ModuleSpec, attempts: Attempts, later: timedelta, now: datetime
) -> Condition:
    until = _backoff_until(config, spec.name, attempts, later)
    if until is None:
        return _NOTHING_FAILED
    failed = f"{attempts.failures} failed in a row"
    if attempts.lost:
        failed += ", the last was lost with its process"
    if now < until:
        detail = f"{failed}; next attempt {_in(until, now)}"
        return Condition("no back-off", False, detail, Reason.BACKING_OFF, until)
    return Condition("no back-off", True, f"{failed}; the wait after that is over", Reason.BACKING_OFF)


def _interval_over(
    config: RoutingConfigUnified,
    spec: ModuleSpec,
    attempts: Attempts,
    urgent: "_Urgent | None",
    later: timedelta,
    now: datetime,
) -> Condition:
    name, interval = "interval over", f"interval {as_duration(config.interval_seconds(spec.name))}"
    due_at = _due_at(config, spec.name, attempts, later)
    if urgent:
        return Condition(name, True, urgent.why, Reason.NOT_DUE)
    if due_at is None:
        return Condition(name, True, f"{interval}; never attempted", Reason.NOT_DUE)
    if now < due_at:
        return Condition(name, False, f"{interval}; due {_in(due_at, now)}", Reason.NOT_DUE, due_at)
    return Condition(name, True, f"{interval}; over since {due_at:%Y-%m-%d %H:%M:%S} UTC", Reason.NOT_DUE)


def _outside_quiet_hours(config: RoutingConfigUnified, now: datetime) -> Condition:
    if until := quiet_until(config.quiet_hours, now):
        detail = f"these are quiet hours; they end {_in(until, now)}"
        return Condition("no quiet hours", False, detail, Reason.QUIET_HOURS, until)
    return _NO_QUIET_HOURS


def _within_budget(budgets: Sequence[RemainingBudget], now: datetime) -> Condition:
    for budget in budgets:
        if why := budget.exhausted_reason:
            until = utc_day_start(now) + timedelta(days=1)
            detail = f"{why}; a new day begins {_in(until, now)}"
            return Condition("budget left", False, detail, Reason.BUDGET_EXHAUSTED, until)
    return _BUDGET_LEFT


def _enough_new(
    config: RoutingConfigUnified,
    spec: ModuleSpec,
    evidence: Evidence | None,
    outcome: RunOutcome | None,
    urgent: "_Urgent | None",
    now: datetime,
    models: tuple[str, ...] | None,
) -> Condition:
    name = "enough new traces"
    if urgent:
        return Condition(name, True, urgent.why, Reason.TOO_FEW_TRACES)
    if evidence is None:
        return _NOT_COUNTED
    if added := _added_labels(config, spec, outcome):
        detail = f"new to choose from since the last optimization: {', '.join(added)}"
        return Condition(name, True, detail, Reason.TOO_FEW_TRACES)
    if outcome and models and outcome.models and models != outcome.models:
        detail = f"the language models changed from {', '.join(outcome.models)} to {', '.join(models)}"
        return Condition(name, True, detail, Reason.TOO_FEW_TRACES)
    if outcome and outcome.verdict == Verdict.WOULD_HAVE_PROMOTED and config.mode_of(spec.name) != "observe":
        detail = f"mode is {config.mode_of(spec.name)} now, and {outcome.version} was only observed"
        return Condition(name, True, detail, Reason.TOO_FEW_TRACES)
    if outcome and outcome.verdict == Verdict.AWAITING_REVIEWS:
        need, new = max(1, outcome.reviews_needed), evidence.new_annotations
        detail = f"{new} new reviews; {need} can decide about {outcome.version}"
        return Condition("enough reviews", new >= need, detail, Reason.AWAITING_REVIEWS, need=need)
    need = config.min_samples(spec.name)
    # Runs read nothing older than the lookback, so after that everything is new.
    if outcome and now - outcome.window_end < timedelta(seconds=config.lookback_seconds):
        need = evidence_required(need, outcome.decisions, outcome.verdict)
    counts = _counts(evidence, need)
    if need > config.min_samples(spec.name):
        verdict = outcome.verdict.replace("_", " ") if outcome else ""
        counts += f", for the last attempt {verdict if verdict.startswith('would') else f'was {verdict}'}"
    return Condition(name, evidence.total >= need, counts, Reason.TOO_FEW_TRACES, need=need)


def _backoff_until(config: RoutingConfigUnified, module: str, attempts: Attempts, later: timedelta) -> datetime | None:
    """When the back-off ends, or ended. None where nothing has failed since the last outcome."""
    if not attempts.failures or not attempts.last_failure_at:
        return None
    tries = min(attempts.lost.times, config.retry.max_retries) if attempts.lost else 0
    if attempts.lost and attempts.lost.times <= config.retry.max_retries:
        return attempts.last_failure_at + timedelta(seconds=config.retry.delay(attempts.lost.times))
    # Whole seconds, for a timedelta overflows where an int does not. Tries that came soon count as one with the first.
    interval = config.interval_seconds(module)
    doubled = interval * 2 ** (attempts.failures - tries - 1)
    longest = max(interval, int(MAX_BACKOFF.total_seconds()))
    return attempts.last_failure_at + timedelta(seconds=min(doubled, longest)) + later


def _due_at(config: RoutingConfigUnified, module: str, attempts: Attempts, later: timedelta) -> datetime | None:
    """When the interval after the last attempt is over. None where there was no attempt."""
    if until := _backoff_until(config, module, attempts, later):
        return until
    interval = timedelta(seconds=config.interval_seconds(module))
    return attempts.outcome_at + interval + later if attempts.outcome_at else None


def why_off(config: RoutingConfigUnified, module: str) -> str | None:
    """Which setting turns a module off, None where it is on."""
    if not config.enable_auto_optimization:
        return "enable_auto_optimization is false"
    if module not in config.modules:
        return "not among the tenant's modules"
    if config.mode_of(module) != "off":
        return None
    return f"modules.{module}.mode is off" if config.modules[module].mode else "mode is off"


def _why_disabled(config: RoutingConfigUnified, spec: ModuleSpec) -> str | None:
    if off := why_off(config, spec.name):
        return off
    if spec.labels is None and len(config.agents) < MIN_LABELS:
        return f"the tenant lists {len(config.agents)} agents; {spec.name} needs at least {MIN_LABELS} to choose from"
    return None


@dataclass(frozen=True)
class _Urgent:
    """Why a module is due regardless of its interval and of new traces, and since when (UTC)."""

    since: datetime
    why: str
    reason: Reason


def _urgent(
    config: RoutingConfigUnified, module: str, attempts: Attempts, fall: QualityFall | None, now: datetime
) -> _Urgent | None:
    """None where nothing is urgent, or where a run has had an outcome since."""
    retrain_after = config.retrain_after(module)
    found = [_Urgent(retrain_after, _retrained_as_of(retrain_after), Reason.DUE)] if retrain_after else []
    if fall and config.quality.monitor:
        found.append(_Urgent(fall.at, str(fall), Reason.QUALITY_FELL))
    return next(
        (each for each in found if now >= each.since and (attempts.outcome_at or each.since) <= each.since), None
    )


def _retrained_as_of(moment: datetime) -> str:
    return f"to be retrained, as of {moment:%Y-%m-%d %H:%M:%S} UTC"


def _added_labels(config: RoutingConfigUnified, spec: ModuleSpec, outcome: RunOutcome | None) -> list[str]:
    """Agents that the last program did not know."""
    if outcome is None or outcome.labels is None or spec.labels is not None:
        return []
    return [agent.name for agent in config.agents if agent.name not in outcome.labels]


def _counts(evidence: Evidence, need: int) -> str:
    annotations = f" and {evidence.new_annotations} new annotations" if evidence.new_annotations else ""
    note = f" ({evidence.note})" if evidence.note else ""
    return f"{evidence.new_traces} new traces{annotations}, {need} needed{note}"


def _in(then: datetime, now: datetime) -> str:
    return f"in {duration(then - now)}, at {then:%Y-%m-%d %H:%M:%S} UTC"
