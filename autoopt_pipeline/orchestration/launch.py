"""Running a tenant's modules now: in this process, or through Dagster's queue and launcher."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import dagster as dg
from dagster import DagsterEventType
from dagster._utils.error import SerializableErrorInfo

from autoopt_pipeline.errors import LaunchFailed
from autoopt_pipeline.names import PARTITION_TAG, SKIPPED_TAG
from autoopt_pipeline.run_history.failures import causes_of, one_line_cause
from autoopt_pipeline.run_history.module_events import outcomes_of_run
from autoopt_pipeline.run_history.progress import LOGGED_AS, ShowProgress, listening, read_progress
from autoopt_pipeline.run_history.runs import UNFINISHED, find_run, read_log, selected_modules
from autoopt_pipeline.tls import trusted_authorities
from autoopt_pipeline.urls import without_login, without_secrets

CODE_LOCATION = "autoopt_pipeline"
"""Name of the code location, as in `workspace.yaml`."""

_ASSET_JOB = "__ASSET_JOB"
"""Dagster's job of all assets, which its UI launches to materialize some of them."""

_POLL_SECONDS = 1.0
_DAGSTER_SECONDS = 300

_INTERRUPTIONS = {"KeyboardInterrupt", "DagsterExecutionInterruptedError"}

LogCallback = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """The result of a run: the metadata of every module that has an outcome, and one line for each that failed.

    `skipped` is the reason why modules were left to another run, if any were.
    """

    run_id: str
    status: dg.DagsterRunStatus
    outcomes: dict[str, dict[str, Any]]
    causes: dict[str, str]
    skipped: str | None = None


def run_in_process(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    tenant: str,
    modules: Sequence[str],
    tags: Mapping[str, str],
    say: LogCallback,
    show: ShowProgress | None = None,
) -> RunResult:
    """Materialize in this process, one module after the other. The queue and its limits do not apply.

    `say` takes the lines of the run's log, and `show` its progress, which otherwise is among the lines. Ctrl-C cancels
    the run.
    """
    run_id = str(uuid4())
    interrupted = False

    def listen(entry: dg.EventLogEntry) -> None:
        nonlocal interrupted
        cause = _retry_cause(entry)
        if cause and cause.cls_name in _INTERRUPTIONS:
            # Dagster treats Ctrl-C as a failure of the step, and would retry it.
            interrupted = True
            instance.report_run_canceling(_run(instance, run_id))
            raise KeyboardInterrupt
        _forward(entry, say, show)

    instance.add_event_listener(run_id, listen)
    with listening(run_id, show):
        defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            run_id=run_id,
            partition_key=tenant,
            asset_selection=[dg.AssetKey(module) for module in modules],
            tags=dict(tags),
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    if interrupted:
        raise KeyboardInterrupt
    return _result(instance, run_id)


def submit(
    instance: dg.DagsterInstance, dagster_ui: str, tenant: str, modules: Sequence[str], tags: Mapping[str, str]
) -> str:
    """Hand a run to the queue through Dagster's webserver at `dagster_ui`, and return its id.

    Raises `LaunchFailed` when the webserver does not answer, refuses, or works with another instance than this.
    """
    from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError
    from gql.transport.requests import RequestsHTTPTransport

    url, shown = urlsplit(dagster_ui), without_secrets(dagster_ui)
    remedy = "set AUTOOPT_DAGSTER_UI_URL to the address of this instance's Dagster UI, or run without --launch"
    try:
        client = DagsterGraphQLClient(
            url.hostname or "",
            transport=RequestsHTTPTransport(
                f"{without_login(dagster_ui)[0]}/graphql",
                timeout=_DAGSTER_SECONDS,
                verify=trusted_authorities() or True,
            ),
        )
        run_id = client.submit_job_execution(
            _ASSET_JOB,
            CODE_LOCATION,
            "__repository__",
            tags={**tags, PARTITION_TAG: tenant},
            asset_selection=list(modules),
        )
        if find_run(instance, run_id) is None:
            client.terminate_run(run_id)
            raise LaunchFailed(f"Dagster at {shown} works with another instance", remedy)
    except (DagsterGraphQLClientError, ValueError) as e:
        chain = list(_chain(e))
        # The first message mostly quotes the query.
        silent = any(isinstance(error, OSError) for error in chain)
        why = "does not answer" if silent else f"refuses: {one_line_cause(str(chain[min(1, len(chain) - 1)]))}"
        raise LaunchFailed(f"Dagster at {shown} {why}", remedy) from e
    return run_id


def follow(instance: dg.DagsterInstance, run_id: str, say: LogCallback, show: ShowProgress | None = None) -> RunResult:
    """Follow a run that another process executes until it has ended, with `say` and `show` as in `run_in_process`."""
    cursor, last = None, None
    while True:
        run = _run(instance, run_id)
        if run.status is not last:
            say(f"run {run_id}: {run.status.value.lower()}")
            last = run.status
        # The log is read after the status, so nothing that was logged before the end is missed.
        entries, cursor = read_log(instance, run_id, cursor)
        for entry in entries:
            _forward(entry, say, show)
        if show:
            running = {(run.tags[PARTITION_TAG], module): run_id for module in selected_modules(run)}
            progress = read_progress(instance, running)
            for key in running:
                show(key[1], progress[key].progress if key in progress else None)
        if run.status not in UNFINISHED:
            return _result(instance, run_id)
        time.sleep(_POLL_SECONDS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__


def _forward(entry: dg.EventLogEntry, say: LogCallback, show: ShowProgress | None) -> None:
    """Forward the lines of modules and the causes of retries. Dagster's own events are left out."""
    if entry.dagster_event is None and int(entry.level) >= logging.INFO:
        if show is None or not entry.user_message.startswith(LOGGED_AS):
            say(f"{entry.step_key}: {entry.user_message}")
    elif cause := _retry_cause(entry):
        say(f"{entry.step_key}: to be tried again: {one_line_cause(cause.message)}")


def _retry_cause(entry: dg.EventLogEntry) -> SerializableErrorInfo | None:
    """The cause of a retry, if the event announces one."""
    event = entry.dagster_event
    if event is None or event.event_type is not DagsterEventType.STEP_UP_FOR_RETRY:
        return None
    error = event.step_retry_data.error
    return (error.cause or error) if error else None


def _result(instance: dg.DagsterInstance, run_id: str) -> RunResult:
    run, outcomes = _run(instance, run_id), outcomes_of_run(instance, run_id)
    return RunResult(run_id, run.status, outcomes, causes_of(instance, run_id), run.tags.get(SKIPPED_TAG))


def _run(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    run = find_run(instance, run_id)
    if run is None:
        raise LaunchFailed(f"run {run_id} was deleted", "start another one")
    return run
