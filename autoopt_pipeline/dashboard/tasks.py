"""What needs a person, worst first, each with its next step. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoopt_pipeline.status.module_status import Health, ModuleStatus

# Modules that are named for each health; a link leads to the others.
_NAMED = 3


@dataclass(frozen=True)
class Task:
    """A module that needs a person, and `others` of the same tenant that failed with it."""

    status: ModuleStatus
    others: int = 0


@dataclass(frozen=True)
class TaskGroup:
    """The modules with one health that need a person: some of them, and how many there are."""

    health: Health
    named: Sequence[Task]
    count: int


def tasks_of(statuses: Iterable[ModuleStatus]) -> list[TaskGroup]:
    """Group the modules that need a person by health, those with the fewest reviews left first."""
    groups: dict[Health, list[ModuleStatus]] = {
        health: [] for health in (Health.FAILING, Health.NEEDS_APPROVAL, Health.NEEDS_REVIEWS)
    }
    for status in statuses:
        if (health := status.health) in groups:
            groups[health].append(status)
    return [TaskGroup(health, _named(health, found), len(found)) for health, found in groups.items() if found]


def _named(health: Health, found: Iterable[ModuleStatus]) -> Sequence[Task]:
    found = sorted(found, key=lambda s: (s.reviews_left or 0, s.tenant_id.lower(), s.module))
    if health is not Health.FAILING:
        return [Task(status) for status in found[:_NAMED]]
    # One cause makes all modules of a tenant fail, most of the time.
    modules = Counter(status.tenant_id for status in found)
    firsts = {status.tenant_id: status for status in reversed(found)}
    return [Task(firsts[tenant], modules[tenant] - 1) for tenant in sorted(firsts, key=str.lower)[:_NAMED]]


def falls_of(statuses: Iterable[ModuleStatus]) -> list[ModuleStatus]:
    """Modules that serve worse than before, newest fall first, until an optimization has ended since."""
    fallen = [(status.fall.at, status) for status in statuses if status.fall and status.fell_since_last]
    return [status for _, status in sorted(fallen, key=lambda pair: pair[0], reverse=True)]
