"""What Phoenix counted last, so that pages keep their numbers while it does not answer."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from autoopt_pipeline.dashboard.status_cache import RefreshError
from autoopt_pipeline.registry.transitions import Rollout
from autoopt_pipeline.rollouts.analysis import RolloutAnalysis
from autoopt_pipeline.run_history.outcomes import ModuleKey
from autoopt_pipeline.scheduling.conditions import Condition, Evidence, Reason, ScheduleDecision
from autoopt_pipeline.status.module_status import ModuleDetail, ModuleStatus

_LOOKS_KEPT = 100
"""A look holds some thousand outcomes."""


@dataclass(frozen=True)
class _Counted:
    """What was new since an outcome, and whether that was enough."""

    outcome_id: int | None
    evidence: Evidence
    enough: Condition


@dataclass(frozen=True)
class KnownLook:
    """How two versions that serve side by side did at a moment (UTC)."""

    look: RolloutAnalysis
    at: datetime


class Counts:
    """What was counted last of each (tenant, module), and what keeps Phoenix from counting now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: dict[ModuleKey, _Counted] = {}
        self._per_day: dict[ModuleKey, int] = {}
        self._looks: dict[tuple[ModuleKey, int], KnownLook] = {}
        self._trouble: RefreshError | None = None

    @property
    def trouble(self) -> RefreshError | None:
        return self._trouble

    def completed(self, standings: Iterable[ModuleStatus], *, of_all: bool = False) -> list[ModuleStatus]:
        """These, with the last known counts where there are no new ones. With `of_all` they are all that there are."""
        found = list(standings)
        with self._lock:
            for each in found:
                if each.decision.evidence and each.decision.conditions:
                    self._counted[each.tenant_id, each.module] = _Counted(
                        each.attempts.outcome_id, each.decision.evidence, each.decision.conditions[-1]
                    )
            self._notice(found, of_all=of_all)
            if of_all:
                keys = {(each.tenant_id, each.module) for each in found}
                self._counted = {key: counted for key, counted in self._counted.items() if key in keys}
                self._per_day = {key: number for key, number in self._per_day.items() if key in keys}
            return [self._complete(each) if each.uncounted else each for each in found]

    def completed_stories(self, stories: Sequence[ModuleDetail]) -> list[ModuleDetail]:
        """As `completed`, with the traces of a day as they were last counted."""
        standings = self.completed(story.standing for story in stories)
        told = []
        with self._lock:
            for story, standing in zip(stories, standings, strict=True):
                key, per_day = (standing.tenant_id, standing.module), story.traces_per_day
                if per_day is not None:
                    self._per_day[key] = per_day
                elif standing.uncounted:
                    per_day = self._per_day.get(key)
                told.append(replace(story, standing=standing, traces_per_day=per_day))
        return told

    def keep_look(self, key: ModuleKey, rollout: Rollout, look: RolloutAnalysis) -> KnownLook:
        """Keep how a rollout stands now."""
        known = KnownLook(look, datetime.now(UTC))
        with self._lock:
            self._looks[key, rollout.transition.sequence] = known
            if len(self._looks) > _LOOKS_KEPT:
                del self._looks[next(iter(self._looks))]
        return known

    def last_look(self, key: ModuleKey, rollout: Rollout) -> KnownLook | None:
        """How this rollout stood when that was last known."""
        return self._looks.get((key, rollout.transition.sequence))

    def _notice(self, standings: Sequence[ModuleStatus], *, of_all: bool) -> None:
        what = next((each.uncounted for each in standings if each.uncounted), "")
        if what:
            self._trouble = RefreshError(self._trouble.since if self._trouble else datetime.now(UTC), what)
        elif of_all or any(each.decision.evidence for each in standings):
            self._trouble = None

    def _complete(self, standing: ModuleStatus) -> ModuleStatus:
        known = self._counted.get((standing.tenant_id, standing.module))
        if known and known.outcome_id != standing.attempts.outcome_id:
            known = None  # a run has learnt from these since
        decision = standing.decision
        if decision.reason is Reason.ERROR:
            return replace(standing, decision=_decided_by(known) if known else _UNKNOWN)
        if known is None:
            return standing
        conditions = (*decision.conditions[:-1], known.enough)
        counted = replace(decision, evidence=known.evidence, need=known.enough.need, conditions=conditions)
        return replace(standing, decision=counted)


_UNKNOWN = ScheduleDecision(Reason.ERROR, "what is new is not known")


def _decided_by(known: _Counted) -> ScheduleDecision:
    """The decision where everything but the count is met, for else Phoenix would not have been needed for it."""
    enough = known.enough
    reason = Reason.DUE if enough.met else enough.otherwise
    return ScheduleDecision(reason, enough.detail, known.evidence, enough.need, conditions=(enough,))
