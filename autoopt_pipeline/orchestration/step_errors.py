"""Step error handling: retry transient failures, otherwise fail with a one-line cause; skip what another run does."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg
from dagster._core.storage.tags import SENSOR_NAME_TAG

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.names import FAILED_TAG, SKIPPED_TAG
from autoopt_pipeline.run_history.outcomes import outcome_since
from autoopt_pipeline.run_history.runs import created_at, executing_runs, find_run
from autoopt_pipeline.secrets import scrub, scrubbing_errors
from autoopt_pipeline.tenants.config import Retry

GRACE_SECONDS = 60.0
"""How long a step whose run is gone may take to end. Calls that wait for a language model can hold it up, and a process
that was started with signals ignored may ignore SIGTERM."""


@contextmanager
def translate_errors(context: dg.AssetExecutionContext, retry: Retry) -> Generator[None, None, None]:
    """Turn errors into failures, or retry the step where the error is transient.

    Answers are kept for the retry, so a search continues where it stopped. Dagster stores a failure with its whole
    chain of causes, so secrets are removed from all of them.
    """
    try:
        with scrubbing_errors():
            yield
    except AutooptError as e:
        if e.transient and context.retry_number < retry.max_retries:
            context.log.warning(f"to be tried again: {e}")
            raise dg.RetryRequested(retry.max_retries, _delay(retry, context.retry_number + 1)) from e
        _mark_as_failed(context)
        raise dg.Failure(str(e), metadata={"remedy": e.remedy}, allow_retries=False) from e
    except Exception as e:
        _mark_as_failed(context)
        raise dg.Failure(scrub(f"unexpected {type(e).__name__}: {e}"), allow_retries=False) from e
    except dg.DagsterExecutionInterruptedError:
        # A person ended the run, or it took too long. Otherwise its pod or machine is being shut down.
        run = find_run(context.instance, context.run.run_id)
        if run and run.status is dg.DagsterRunStatus.CANCELING:
            _mark_as_failed(context)
        raise


def _mark_as_failed(context: dg.AssetExecutionContext) -> None:
    """Distinguish this run from one that was killed. It never fails, because the first error is more important."""
    try:
        context.instance.add_run_tags(context.run.run_id, {FAILED_TAG: "yes"})
    except Exception as e:  # noqa: BLE001 - each database has errors of its own
        context.log.warning(f"the run is not marked as failed by itself: {e}")


def _delay(retry: Retry, attempt: int) -> float:
    """Seconds before the try after this one."""
    policy = dg.RetryPolicy(
        delay=retry.delay_seconds,
        backoff=dg.Backoff.EXPONENTIAL if retry.backoff == "exponential" else None,
        jitter=dg.Jitter.PLUS_MINUS,
    )
    return policy.calculate_delay(attempt)


def exit_with_parent() -> None:
    """Stop this process when the process of its run is gone.

    Otherwise the step of a killed run would go on beside the tenant's next run, which does the same.
    """
    run = multiprocessing.parent_process()
    if run is None:
        return

    def end() -> None:
        run.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end, name="end-with-the-run", daemon=True).start()


def should_skip(context: dg.AssetExecutionContext, module: str) -> bool:
    """Whether to leave a module to another run of the tenant. That is no failure; the run is tagged with the reason."""
    why = _concurrent_run(context) or _newer_outcome(context, module)
    if why is None:
        return False
    context.log.warning(f"skipped: {why}")
    context.instance.add_run_tags(context.run.run_id, {SKIPPED_TAG: why})
    return True


def _concurrent_run(context: dg.AssetExecutionContext) -> str | None:
    """The reason to skip where another run of the tenant began earlier and has not ended.

    Queued runs wait for each other; runs in the process of a command do not. Of two runs, the one that began earlier
    goes on, whichever checks first, because the start of a run is stored once, before its steps.
    """
    began = {
        run.run_id: (run.started_at, run.run_id)
        for run in executing_runs(context.instance, context.partition_key)
        if run.started_at is not None and run.modules.intersection(modules())
    }
    own = began.pop(context.run.run_id, None)
    if own and began and (first := min(began.values())) < own:
        return (
            f"run {first[1]} of tenant {context.partition_key} began earlier and has not ended; wait for it, and where "
            "its process is gone, for the Dagster daemon, which fails it within a minute"
        )
    return None


def _newer_outcome(context: dg.AssetExecutionContext, module: str) -> str | None:
    """The reason to skip where another run reported an outcome of the module after the sensor had launched this one.

    That happens with two daemons, or when a person runs what is queued. People may repeat a run as often as they like.
    """
    launched = created_at(context.instance, context.run.run_id)
    if launched is None or SENSOR_NAME_TAG not in context.run.tags or context.run.parent_run_id:
        return None
    if other := outcome_since(context.instance, context.partition_key, module, launched):
        return (
            f"run {other} of tenant {context.partition_key} has learnt from these traces after this one was launched; "
            "where that happens often, see that only one Dagster daemon runs"
        )
    return None
