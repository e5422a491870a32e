"""Which modules failed in failed runs, why, and for the how-many-th time in a row. A read is bounded."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import dagster as dg

from autoopt_pipeline.run_history.ended_runs import EndedRun, read_ended_runs
from autoopt_pipeline.run_history.failures import causes_of, first_failure
from autoopt_pipeline.run_history.outcomes import failure_streaks

_STREAK_DAYS = 30
"""Failures count as consecutive for so long. By default, Dagster's records of runs are deleted then."""

_LOOKUPS = 50
"""Runs of one read whose process died. The cause of each is a query of 6 to 50 ms."""


@dataclass(frozen=True)
class ModuleFailure:
    """A module without an outcome in a failed run. `number` counts the module's consecutive failures up to this one.
    It is None where the module has had an outcome since."""

    tenant: str
    module: str
    run_id: str
    at: datetime
    cause: str
    number: int | None


@dataclass(frozen=True)
class ModuleFailures:
    """One read, oldest first. `after` is the event id after which the next one continues; `full` means that more runs
    had failed than are read, and the oldest are left out."""

    failures: list[ModuleFailure]
    after: int
    full: bool


def read_module_failures(
    instance: dg.DagsterInstance, modules: Collection[str], after: int, *, until: datetime
) -> ModuleFailures:
    """Failures of these modules, in runs that failed after an event id."""
    end = dg.DagsterEventType.RUN_FAILURE
    ended = read_ended_runs(instance, modules, end, after, until=until, newest=True)
    tenants = {run.tenant for run in ended.runs}
    since = until - timedelta(days=_STREAK_DAYS)
    streaks = failure_streaks(instance, modules, tenants, since=since) if tenants else {}
    dead = [run for run in ended.runs if first_failure(run.event).cause is None]
    causes = {run.run_id: causes_of(instance, run.run_id) for run in dead[-_LOOKUPS:]}
    failures = []
    for run in ended.runs:
        for module, cause in _failed_modules(run, modules, streaks, causes.get(run.run_id, {})):
            streak = streaks.get((run.tenant, module), [])
            number = streak.index(run.run_id) + 1 if run.run_id in streak else None
            failures.append(ModuleFailure(run.tenant, module, run.run_id, run.ended_at, cause, number))
    return ModuleFailures(failures, ended.after, ended.full)


def _failed_modules(
    run: EndedRun, modules: Collection[str], streaks: dict[tuple[str, str], list[str]], causes: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """The modules of a run that failed, each with its cause: those without an outcome since, and the one that failed
    first. A module that was not begun, because another failed, has that cause."""
    first = first_failure(run.event)
    cause = first.cause or next(iter(causes.values()), "its process died")
    selected = run.run.modules.intersection(modules)
    failed = {module for module in selected if run.run_id in streaks.get((run.tenant, module), ())}
    failed |= selected.intersection({first.module})
    for module in sorted(failed or selected):
        yield module, causes.get(module, cause)
