"""Why runs failed, each in one line, from their failure events."""

from collections.abc import Iterator
from dataclasses import dataclass

import dagster as dg
from dagster import DagsterEvent, DagsterEventType
from dagster._core.events import JobFailureData
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.executor.child_process_executor import ChildProcessCrashException
from dagster._utils.error import SerializableErrorInfo

from autoopt_pipeline import errors
from autoopt_pipeline.secrets import scrub
from autoopt_pipeline.text import one_line

WHOLE_RUN = "run"
"""Stands for all modules of a run that failed before or beside them: its process died, or somebody ended it."""

LOST, UNEXPECTED = "lost", "unexpected"
"""Classes of failures beside those of `errors`: the process died or never began, and an error that is not ours."""

_FAILURES = {
    DagsterEventType.ENGINE_EVENT,
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.RUN_FAILURE,
    DagsterEventType.RUN_CANCELED,
}
"""The events that say why a run failed."""

_OUR_ERRORS = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.AutooptError)
}
_OF_DEAD_PROCESSES = {ChildProcessCrashException.__name__, dg.DagsterExecutionInterruptedError.__name__}

_MAX_CHARS = 500

_SAYS_NOTHING = "This run has been marked as failed from outside the execution context."
"""Dagster's message where a run's process died. Why stands in the event before it."""

_KILLED = "a process of it was killed, most likely for want of memory (OOMKilled): give it more"


@dataclass(frozen=True)
class FirstFailure:
    """The first failure of a run: the module (None where no step failed), the class of its error, and its cause in one
    line, which is None where only the run's other events know it (`causes_of`)."""

    module: str | None
    error: str
    cause: str | None


def first_failure(run_failure: dg.EventLogEntry) -> FirstFailure:
    """What the event RUN_FAILURE holds by itself, so that many runs cost no query each."""
    data = run_failure.dagster_event.event_specific_data if run_failure.dagster_event else None
    step = data.first_step_failure_event if isinstance(data, JobFailureData) else None
    if step is None:
        return FirstFailure(None, LOST, None)
    failure = step.step_failure_data
    names = [error.cls_name for error in error_chain(failure.error)]
    if not _OF_DEAD_PROCESSES.isdisjoint(names):
        return FirstFailure(step.step_key, LOST, None)
    return FirstFailure(step.step_key, next((n for n in names if n in _OUR_ERRORS), UNEXPECTED), _of_step(failure))


def error_chain(error: SerializableErrorInfo | None) -> Iterator[SerializableErrorInfo]:
    """An error, and what caused it, down to the first cause."""
    while error:
        yield error
        error = error.cause


def causes_of(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    """One line for each module of a run that failed; for the `WHOLE_RUN` only where no module says why."""
    causes: dict[str, str] = {}
    crashes: dict[str, str] = {}
    whole = before = ""
    for entry in instance.all_logs(run_id, of_type=_FAILURES):
        event = entry.dagster_event
        if event is None:
            continue
        step = str(event.step_key)
        if event.event_type is DagsterEventType.STEP_FAILURE:
            causes[step] = crashes.get(step) or _of_step(event.step_failure_data)
        elif event.event_type is DagsterEventType.ENGINE_EVENT:
            before = event.message or before
            error = event.engine_event_data.error
            if error and error.cls_name == ChildProcessCrashException.__name__:
                # The failure that follows names the exception and nothing else.
                crashes[step] = _KILLED if "SIGKILL" in before else one_line_cause(before)
        else:
            whole = before if event.message == _SAYS_NOTHING and before else _of_run(event) or whole
    return causes or ({WHOLE_RUN: one_line_cause(whole)} if whole else {})


def one_line_cause(text: str) -> str:
    """A message in one line, cut where it is very long."""
    return one_line(scrub(text), length=_MAX_CHARS)


def _of_step(failure: StepFailureData) -> str:
    # What the assets raise says in its description what a person needs; of anything else there is an error.
    if failure.user_failure_data and failure.user_failure_data.description:
        return one_line_cause(failure.user_failure_data.description)
    if failure.error and failure.error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
        return "its process was told to stop: the run was ended, or its pod or machine was taken away"
    return one_line_cause(failure.error.message) if failure.error else "it failed"


def _of_run(event: DagsterEvent) -> str:
    data = event.event_specific_data
    error = data.error if isinstance(data, JobFailureData) else None
    if error is None:
        return event.message or ""
    # Its processes are forked from one that is gone.
    return _KILLED if error.cls_name == EOFError.__name__ else error.message
