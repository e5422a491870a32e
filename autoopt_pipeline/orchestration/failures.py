"""Why runs failed, each in one line, from their failure events."""

import dagster as dg
from dagster import DagsterEvent, DagsterEventType
from dagster._core.events import JobFailureData
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.executor.child_process_executor import ChildProcessCrashException

WHOLE_RUN = "run"
"""Stands for all modules of a run that failed before or beside them: its process died, or somebody ended it."""

_FAILURES = {
    DagsterEventType.ENGINE_EVENT,
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.RUN_FAILURE,
    DagsterEventType.RUN_CANCELED,
}
_MAX_CHARS = 500

_KILLED = "a process of it was killed, most likely for want of memory (OOMKilled): give it more"


def causes_of(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    """One line for each module of a run that failed; for the `WHOLE_RUN` only where no module says why."""
    causes: dict[str, str] = {}
    crashes: dict[str, str] = {}
    whole = ""
    for entry in instance.all_logs(run_id, of_type=_FAILURES):
        event = entry.dagster_event
        if event is None:
            continue
        step = str(event.step_key)
        if event.event_type is DagsterEventType.STEP_FAILURE:
            causes[step] = crashes.get(step) or _of_step(event.step_failure_data)
        elif event.event_type is not DagsterEventType.ENGINE_EVENT:
            whole = _of_run(event) or whole
        elif (error := event.engine_event_data.error) and error.cls_name == ChildProcessCrashException.__name__:
            # The failure that follows names the exception and nothing else.
            told = one_line_cause(event.message or "")
            crashes[step] = _KILLED if "SIGKILL" in told else told
    return causes or ({WHOLE_RUN: one_line_cause(whole)} if whole else {})


def one_line_cause(text: str) -> str:
    """A message in one line, cut where it is very long."""
    return " ".join(text.split())[:_MAX_CHARS]


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
