"""Why runs failed, each in one line, from their failure events."""

import dagster as dg
from dagster import DagsterEventType
from dagster._core.execution.plan.objects import StepFailureData

from autoopt_pipeline.wording import printable

WHOLE_RUN = "run"
"""Stands for all modules of a run that failed before or beside them: its process died, or somebody ended it."""

_FAILURES = {
    DagsterEventType.STEP_FAILURE,
    DagsterEventType.RUN_FAILURE,
    DagsterEventType.RUN_CANCELED,
}
_MAX_CHARS = 500

_SAYS_NOTHING = "This run has been marked as failed from outside the execution context."
"""Dagster's message where a run's process died. Why stands in the event before it."""


def causes_of(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    """One line for each module of a run that failed; for the `WHOLE_RUN` only where no module says why."""
    causes: dict[str, str] = {}
    whole = before = ""
    for entry in instance.all_logs(run_id, of_type={*_FAILURES, DagsterEventType.ENGINE_EVENT}):
        event = entry.dagster_event
        if event is None:
            continue
        if event.event_type is DagsterEventType.ENGINE_EVENT:
            before = event.message or before
        elif event.event_type is DagsterEventType.STEP_FAILURE:
            causes[str(event.step_key)] = _of_step(event.step_failure_data)
        else:
            whole = before if event.message == _SAYS_NOTHING and before else event.message or whole
    return causes or ({WHOLE_RUN: one_line_cause(whole)} if whole else {})


def one_line_cause(text: str) -> str:
    """A message in one line, cut where it is very long."""
    return printable(" ".join(text.split()))[:_MAX_CHARS]


def _of_step(failure: StepFailureData) -> str:
    # What the assets raise says in its description what a person needs; of anything else there is an error.
    if failure.user_failure_data and failure.user_failure_data.description:
        return one_line_cause(failure.user_failure_data.description)
    if failure.error and failure.error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
        return "its process was told to stop: the run was ended, or its pod or machine was taken away"
    return one_line_cause(failure.error.message) if failure.error else "it failed"
