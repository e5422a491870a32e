"""Derives the active version, the rollback stack and the active rollout from a module's transitions. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoopt_pipeline.registry.records import Pointer, Rollback, Transition
from autoopt_pipeline.span_contract import BASELINE


def pointer_after(transitions: Sequence[Transition]) -> Pointer:
    """Return the content of `active.json` after these transitions, of which there is at least one."""
    last = transitions[-1]
    versions = tuple(version for version, transition in rolled_back(transitions).items() if transition is last)
    return Pointer(
        version=last.to_version,
        sequence=last.sequence,
        canary=last.canary,
        rolled_back=Rollback(versions=versions, at=last.at, actor=last.actor, reason=last.reason) if versions else None,
    )


@dataclass(frozen=True)
class Rollout:
    """Two versions that serve side by side from one transition to the next. None is the baseline.

    `version` is the newer one: either the active version, while its predecessor (`against`) keeps a fraction of the
    requests (a holdback); or a canary that gets that fraction (0 to 1) before it becomes active.
    """

    transition: Transition
    version: str | None
    against: str | None
    fraction: float

    @property
    def proving_alpha(self) -> float | None:
        """At which alpha the canary must prove itself to become active; None if it needs only to be not worse."""
        return self.transition.proving_alpha if self.is_canary else None

    @property
    def is_canary(self) -> bool:
        """Whether the newer version is not active yet."""
        return self.transition.to_version == self.against


def active_rollout(last: Transition | None) -> Rollout | None:
    """Return the rollout that the last transition began, or None."""
    if last is None or not last.canary:
        return None
    name, fraction = next(iter(last.canary.items()))
    other = None if name == BASELINE else name
    # A transition to the version that is active already starts a canary; any other one holds its predecessor back.
    starts_canary = last.to_version == last.from_version
    version, against = (other, last.to_version) if starts_canary else (last.to_version, other)
    return Rollout(last, version, against, fraction)


def rollback_stack(transitions: Iterable[Transition]) -> tuple[str | None, ...]:
    """Return the versions that a rollback steps through: the baseline (None) first, the active version last.

    Versions that were rolled back are not among them, so a rollback never restores one.
    """
    return _replay(transitions)[0]


def rolled_back(transitions: Iterable[Transition]) -> dict[str, Transition]:
    """Return the versions that were rolled back and have not become active again, each with its rollback.

    A transition is a rollback when it leads to the baseline, or to a version that was active before. It rolls back
    every version that came after that one. A canary that ends without becoming active counts as rolled back, too.
    """
    return _replay(transitions)[1]


def _replay(transitions: Iterable[Transition]) -> tuple[tuple[str | None, ...], dict[str, Transition]]:
    stack: list[str | None] = [None]
    rolled_back_by: dict[str, Transition] = {}
    canary: str | None = None
    for transition in transitions:
        if transition.to_version in stack:
            kept = stack.index(transition.to_version) + 1
            rolled_back_by |= {version: transition for version in stack[kept:] if version}
            del stack[kept:]
        else:
            stack.append(transition.to_version)
        rollout = active_rollout(transition)
        next_canary = rollout.version if rollout and rollout.is_canary else None
        if canary and canary not in {transition.to_version, next_canary}:
            rolled_back_by[canary] = transition
        canary = next_canary
        for version in (transition.to_version, canary):
            if version:
                rolled_back_by.pop(version, None)
    return tuple(stack), rolled_back_by
