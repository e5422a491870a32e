"""What Phoenix counted last, so that pages keep their numbers while it does not answer."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from autoopt_pipeline.artifacts.moves import Watch
from autoopt_pipeline.optimization.plan import Condition, Decision, Evidence, Reason
from autoopt_pipeline.optimization.watch import Look
from autoopt_pipeline.orchestration.history import Key
from autoopt_pipeline.orchestration.standing import Standing, Story

_LOOKS_KEPT = 100
"""A look holds some thousand outcomes."""


@dataclass(frozen=True)
class Trouble:
    """Why something cannot be known, and since when (UTC)."""

    since: datetime
    what: str


class Counts:
    """What is new of each (tenant, module) as it was last counted, and what keeps from counting now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: dict[Key, tuple[Evidence, Condition]] = {}
        self._per_day: dict[Key, int] = {}
        self._looks: dict[Key, tuple[int, Look, datetime]] = {}
        self._trouble: Trouble | None = None

    @property
    def trouble(self) -> Trouble | None:
        return self._trouble

    def completed(self, standings: Iterable[Standing], *, of_all: bool = False) -> tuple[Standing, ...]:
        """These, with the last known counts where there are no new ones. With `of_all` they are all that there are."""
        found = tuple(standings)
        with self._lock:
            for each in found:
                if each.decision.evidence and each.decision.conditions:
                    self._counted[each.tenant_id, each.module] = each.decision.evidence, each.decision.conditions[-1]
            self._notice(found, of_all=of_all)
            if of_all:
                keys = {(each.tenant_id, each.module) for each in found}
                self._counted = {key: counted for key, counted in self._counted.items() if key in keys}
                self._per_day = {key: number for key, number in self._per_day.items() if key in keys}
            return tuple(self._complete(each) if each.uncounted else each for each in found)

    def completed_stories(self, stories: Sequence[Story]) -> list[Story]:
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

    def keep_look(self, key: Key, watch: Watch, look: Look) -> None:
        """Keep how two versions that serve side by side do."""
        with self._lock:
            self._looks.pop(key, None)
            self._looks[key] = watch.move.sequence, look, datetime.now(UTC)
            if len(self._looks) > _LOOKS_KEPT:
                del self._looks[next(iter(self._looks))]

    def last_look(self, key: Key, watch: Watch) -> tuple[Look | None, datetime | None]:
        """How they did when that was last known, and when that was (UTC)."""
        sequence, look, at = self._looks.get(key, (None, None, None))
        return (look, at) if sequence == watch.move.sequence else (None, None)

    def _notice(self, standings: Sequence[Standing], *, of_all: bool) -> None:
        what = next((each.uncounted for each in standings if each.uncounted), "")
        if what:
            self._trouble = Trouble(self._trouble.since if self._trouble else datetime.now(UTC), what)
        elif of_all or any(each.decision.evidence for each in standings):
            self._trouble = None

    def _complete(self, standing: Standing) -> Standing:
        decision, known = standing.decision, self._counted.get((standing.tenant_id, standing.module))
        if decision.reason is not Reason.ERROR:
            if known:
                evidence, condition = known
                conditions = (*decision.conditions[:-1], condition)
                decision = replace(decision, evidence=evidence, need=condition.need, conditions=conditions)
        elif known:
            # Everything but the count is met, else Phoenix would not have been asked for this decision.
            evidence, condition = known
            reason = Reason.DUE if condition.met else condition.otherwise
            decision = Decision(reason, condition.detail, evidence, condition.need, conditions=(condition,))
        else:
            decision = Decision(Reason.ERROR, "what is new is not known")
        return replace(standing, decision=decision)
