"""The status of tenants' modules, which the commands and the dashboard show: decision, last outcome, active version."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.orchestration.planner import WHOLE_TENANT, Plan, PlanOptions, plan_tenants
from autoopt_pipeline.registry.module_versions import decided_about
from autoopt_pipeline.registry.program_cost import CANDIDATE, ProgramCost
from autoopt_pipeline.registry.quality_records import ModuleQuality, QualityFall, read_qualities
from autoopt_pipeline.registry.records import PASSED, Manifest, Rollback, Verdict
from autoopt_pipeline.registry.rollout_records import indexed_rollouts
from autoopt_pipeline.run_history.outcomes import ModuleKey, read_outcomes
from autoopt_pipeline.run_history.progress import RunProgress, read_progress
from autoopt_pipeline.scheduling.conditions import Attempts, Reason, RunOutcome, ScheduleDecision
from autoopt_pipeline.status.active_versions import (
    NEVER_PROMOTED,
    ActiveVersion,
    read_active,
    read_active_by_index,
    verdict_on_active,
)
from autoopt_pipeline.status.fleet_decisions import FleetDecisions
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.text import iso


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
            return verdict_on_active(self.unreported)
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
                    "until": iso(condition.until),
                }
                for condition in decision.conditions
            ],
            "next_due": iso(decision.until),
            "new_traces": evidence.new_traces if evidence else None,
            "new_annotations": evidence.new_annotations if evidence else None,
            "needed": decision.need,
            "running": attempts.running,
            "progress": {"at": iso(progress.at), **progress.progress.as_dict()} if progress else None,
            "backing_off": decision.reason is Reason.BACKING_OFF,
            "failures": attempts.failures,
            "last_failure_at": iso(attempts.last_failure_at),
            "last_failed_run": attempts.last_failed_run,
            "last_verdict": self.verdict or None,
            "needs_approval": self.proposed,
            "needs_reviews": self.awaits_reviews,
            "rollout_reviews": self.rollout_reviews,
            "last_outcome_at": iso(self.last_at),
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
