"""When a tenant's module is to be optimized. Pure: plain values in, a decision with its reason out.

The sensor, the commands and the reports all ask `decide`, so they cannot disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.optimization.limits import Allowance, midnight, quiet_until, spread
from autoopt_pipeline.optimization.retry import needed_evidence
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import MIN_LABELS

MAX_BACKOFF = timedelta(hours=6)
"""Longest wait after repeated failures, unless the tenant's own interval is longer."""


class Reason(StrEnum):
    DUE = "due"
    DISABLED = "disabled"
    NOT_DUE = "not_due"
    TOO_FEW_TRACES = "too_few_traces"
    IN_PROGRESS = "in_progress"
    BACKING_OFF = "backing_off"
    QUIET_HOURS = "quiet_hours"
    BUDGET_EXHAUSTED = "budget_exhausted"
    ERROR = "error"


@dataclass(frozen=True)
class Attempts:
    """What became of a module's runs: when the last one had an outcome, how many failed since, which is under way.

    `outcome_id` and `last_failed_run` tell one attempt from the next.
    """

    outcome_at: datetime | None = None
    outcome_id: int | None = None
    failures: int = 0
    last_failure_at: datetime | None = None
    last_failed_run: str | None = None
    running: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What the last optimization saw: traces before `window_end` (UTC), and the totals up to then, where known.

    `decisions` is how many it had, and `labels` are the answers that its program could give.
    """

    window_end: datetime
    trace_total: int | None
    annotation_total: int | None
    verdict: str = ""
    decisions: int = 0
    labels: frozenset[str] | None = None


@dataclass(frozen=True)
class Evidence:
    """What is new in Phoenix since the last outcome; `note` says what is odd about the project."""

    new_traces: int
    new_annotations: int = 0
    note: str = ""

    @property
    def total(self) -> int:
        return self.new_traces + self.new_annotations


@dataclass(frozen=True)
class Decision:
    """Whether to optimize now, and why (not), with the numbers that decided."""

    reason: Reason
    detail: str
    evidence: Evidence | None = None
    need: int | None = None
    until: datetime | None = None
    waiting_since: datetime | None = None

    @property
    def launch(self) -> bool:
        return self.reason is Reason.DUE


@dataclass(frozen=True)
class NeedsEvidence:
    """Everything else is met: count what is new, and ask again."""


def decide(
    config: RoutingConfigUnified,
    spec: ModuleSpec,
    attempts: Attempts,
    evidence: Evidence | None,
    outcome: Outcome | None = None,
    *,
    now: datetime,
    jitter: float = 0.0,
    allowances: Sequence[Allowance] = (),
) -> Decision | NeedsEvidence:
    """Check the conditions in the order of their cost: configuration, history, limits, then what Phoenix has.

    `jitter` is the share of the interval over which tenants are spread, and `allowances` are what bounds the
    tenant's spending today. With `evidence` None, the answer is `NeedsEvidence` where only Phoenix can decide;
    `outcome` is the last one, where there is any, and only asked together with the evidence.
    """
    module = spec.name
    if why := _why_disabled(config, spec):
        return Decision(Reason.DISABLED, why)
    if attempts.running:
        return Decision(Reason.IN_PROGRESS, f"run {attempts.running} of this tenant is under way")
    interval = timedelta(seconds=config.interval_seconds(module))
    later = spread(config.tenant_id, interval, jitter)
    due_at = attempts.outcome_at + interval + later if attempts.outcome_at else None
    if attempts.failures and attempts.last_failure_at:
        # Whole seconds, for a timedelta overflows where an int does not.
        doubled = int(interval.total_seconds()) * 2 ** (attempts.failures - 1)
        longest = int(max(interval, MAX_BACKOFF).total_seconds())
        until = attempts.last_failure_at + timedelta(seconds=min(doubled, longest)) + later
        if now < until:
            return Decision(
                Reason.BACKING_OFF,
                f"{attempts.failures} failed in a row; next attempt {_in(until, now)}",
                until=until,
            )
        due_at = until
    retrain_after = _to_retrain(config, module, attempts, now)
    if retrain_after is None and due_at and now < due_at:
        return Decision(
            Reason.NOT_DUE, f"interval {interval.total_seconds():.0f} s; due {_in(due_at, now)}", until=due_at
        )
    if limited := _limited(config, allowances, now):
        return limited
    if retrain_after:
        detail = f"to be retrained, as of {retrain_after:%Y-%m-%d %H:%M:%S} UTC"
        return Decision(Reason.DUE, detail, waiting_since=retrain_after)
    if evidence is None:
        return NeedsEvidence()
    if added := _added_labels(config, spec, outcome):
        detail = f"new to choose from since the last optimization: {', '.join(added)}"
        return Decision(Reason.DUE, detail, evidence=evidence, waiting_since=due_at)
    need = config.min_samples(module)
    # What is older than the lookback is learnt from no more, so then everything is new.
    if outcome and now - outcome.window_end < timedelta(seconds=config.lookback_seconds):
        need = needed_evidence(need, outcome.decisions, outcome.verdict)
    counts = _counts(evidence, need)
    if need > config.min_samples(module):
        counts += f", for the last attempt was {outcome.verdict.replace('_', ' ') if outcome else ''}"
    if evidence.total < need:
        return Decision(Reason.TOO_FEW_TRACES, counts, evidence=evidence, need=need)
    return Decision(Reason.DUE, counts, evidence=evidence, need=need, waiting_since=due_at)


def count_from(config: RoutingConfigUnified, outcome: Outcome | None, *, now: datetime) -> datetime:
    """From when on traces are new: the end of what was last learnt from, within the lookback."""
    earliest = now - timedelta(seconds=config.lookback_seconds)
    return max(outcome.window_end, earliest) if outcome else earliest


def _why_disabled(config: RoutingConfigUnified, spec: ModuleSpec) -> str | None:
    if not config.enable_auto_optimization:
        return "enable_auto_optimization is false"
    if spec.name not in config.modules:
        return "not among the tenant's modules"
    if not config.modules[spec.name].enabled:
        return f"modules.{spec.name}.enabled is false"
    if spec.labels is None and len(config.agents) < MIN_LABELS:
        return f"the tenant lists {len(config.agents)} agents; {spec.name} needs at least {MIN_LABELS} to choose from"
    return None


def _limited(config: RoutingConfigUnified, allowances: Sequence[Allowance], now: datetime) -> Decision | None:
    """Why nothing may be launched now, although it is due."""
    if until := quiet_until(config.quiet_hours, now):
        return Decision(
            Reason.QUIET_HOURS, f"it is due, and these are quiet hours; they end {_in(until, now)}", until=until
        )
    for allowance in allowances:
        if why := allowance.used_up:
            until = midnight(now) + timedelta(days=1)
            return Decision(Reason.BUDGET_EXHAUSTED, f"{why}; a new day begins {_in(until, now)}", until=until)
    return None


def _to_retrain(config: RoutingConfigUnified, module: str, attempts: Attempts, now: datetime) -> datetime | None:
    """Since when the module's program is to be replaced whatever is new, if it is and has not been tried since."""
    since = config.retrain_after(module)
    if since is None or now < since or (attempts.outcome_at and attempts.outcome_at > since):
        return None
    return since


def _added_labels(config: RoutingConfigUnified, spec: ModuleSpec, outcome: Outcome | None) -> list[str]:
    """Agents that the last program could not answer with."""
    if outcome is None or outcome.labels is None or spec.labels is not None:
        return []
    return [agent.name for agent in config.agents if agent.name not in outcome.labels]


def _counts(evidence: Evidence, need: int) -> str:
    annotations = f" and {evidence.new_annotations} new annotations" if evidence.new_annotations else ""
    note = f" ({evidence.note})" if evidence.note else ""
    return f"{evidence.new_traces} new traces{annotations}, {need} needed{note}"


def _in(then: datetime, now: datetime) -> str:
    return f"in {(then - now).total_seconds():.0f} s, at {then:%Y-%m-%d %H:%M:%S} UTC"
