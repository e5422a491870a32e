"""The last counts from Phoenix, so that pages keep their numbers while Phoenix does not answer."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from autoopt_pipeline.dashboard.status_cache import RefreshError
from autoopt_pipeline.registry.transitions import Rollout
from autoopt_pipeline.rollouts.analysis import RolloutAnalysis
from autoopt_pipeline.run_history.outcomes import ModuleKey
from autoopt_pipeline.scheduling.conditions import Condition, Evidence, Reason, ScheduleDecision
from autoopt_pipeline.status.module_detail import ModuleDetail
from autoopt_pipeline.status.module_status import ModuleStatus

_LOOKS_KEPT = 100
"""An analysis holds some thousand outcomes."""


@dataclass(frozen=True)
class _Counted:
    """The new evidence since an outcome, and whether it was enough."""

    outcome_id: int | None
    evidence: Evidence
    enough: Condition


@dataclass(frozen=True)
class KnownAnalysis:
    """A comparison of two versions that serve side by side, and when it was made (UTC)."""

    analysis: RolloutAnalysis
    at: datetime


class Counts:
    """The last counts of each (tenant, module), and the error that prevents new ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: dict[ModuleKey, _Counted] = {}
        self._per_day: dict[ModuleKey, int] = {}
        self._analyses: dict[tuple[ModuleKey, int], KnownAnalysis] = {}
        self._trouble: RefreshError | None = None

    @property
    def trouble(self) -> RefreshError | None:
        return self._trouble

    def completed(self, statuses: Iterable[ModuleStatus], *, of_all: bool = False) -> list[ModuleStatus]:
        """The statuses, with the last known counts where Phoenix gave none. `of_all`: no other modules exist."""
        statuses = list(statuses)
        with self._lock:
            for status in statuses:
                if status.decision.evidence and status.decision.conditions:
                    self._counted[status.tenant_id, status.module] = _Counted(
                        status.attempts.outcome_id, status.decision.evidence, status.decision.conditions[-1]
                    )
            self._notice(statuses, of_all=of_all)
            if of_all:
                keys = {(status.tenant_id, status.module) for status in statuses}
                self._counted = {key: counted for key, counted in self._counted.items() if key in keys}
                self._per_day = {key: number for key, number in self._per_day.items() if key in keys}
            return [self._complete(status) if status.uncounted else status for status in statuses]

    def completed_stories(self, stories: Sequence[ModuleDetail]) -> list[ModuleDetail]:
        """As `completed`, with the last known number of traces a day."""
        statuses = self.completed(story.standing for story in stories)
        completed = []
        with self._lock:
            for story, status in zip(stories, statuses, strict=True):
                key, per_day = (status.tenant_id, status.module), story.traces_per_day
                if per_day is not None:
                    self._per_day[key] = per_day
                elif status.uncounted:
                    per_day = self._per_day.get(key)
                completed.append(replace(story, standing=status, traces_per_day=per_day))
        return completed

    def keep_analysis(self, key: ModuleKey, rollout: Rollout, analysis: RolloutAnalysis) -> KnownAnalysis:
        """Keep the newest comparison of a rollout."""
        known = KnownAnalysis(analysis, datetime.now(UTC))
        with self._lock:
            self._analyses[key, rollout.transition.sequence] = known
            if len(self._analyses) > _LOOKS_KEPT:
                del self._analyses[next(iter(self._analyses))]
        return known

    def last_analysis(self, key: ModuleKey, rollout: Rollout) -> KnownAnalysis | None:
        """The last known comparison of a rollout."""
        return self._analyses.get((key, rollout.transition.sequence))

    def _notice(self, statuses: Sequence[ModuleStatus], *, of_all: bool) -> None:
        what = next((status.uncounted for status in statuses if status.uncounted), "")
        if what:
            self._trouble = RefreshError(self._trouble.since if self._trouble else datetime.now(UTC), what)
        elif of_all or any(status.decision.evidence for status in statuses):
            self._trouble = None

    def _complete(self, status: ModuleStatus) -> ModuleStatus:
        known = self._counted.get((status.tenant_id, status.module))
        if known and known.outcome_id != status.attempts.outcome_id:
            known = None  # a run has used these traces since
        decision = status.decision
        if decision.reason is Reason.ERROR:
            return replace(status, decision=_decided_by(known) if known else _UNKNOWN)
        if known is None:
            return status
        conditions = (*decision.conditions[:-1], known.enough)
        counted = replace(decision, evidence=known.evidence, need=known.enough.need, conditions=conditions)
        return replace(status, decision=counted)


_UNKNOWN = ScheduleDecision(Reason.ERROR, "what is new is not known")


def _decided_by(known: _Counted) -> ScheduleDecision:
    """The decision when only the count is missing. All else is met, because the planner asks Phoenix last."""
    enough = known.enough
    reason = Reason.DUE if enough.met else enough.otherwise
    return ScheduleDecision(reason, enough.detail, known.evidence, enough.need, conditions=(enough,))
