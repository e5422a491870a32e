"""How a step ends that cannot go on, or need not: with one line for a person, and another try where that may help."""

import multiprocessing
import os
import signal
import threading
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


@contextmanager
def translate_errors(context: dg.AssetExecutionContext, retry: Retry) -> Generator[None, None, None]:
    """Turn errors into failures, or have the step tried again.

    Only what may pass by itself is tried again. Answers are kept meanwhile, so a search goes on where it stopped.
    Dagster stores a failure with all that caused it, so no secret may be left in any of that.
    """
    try:
        with scrubbing_errors():
            yield
    except AutooptError as e:
        if e.transient and context.retry_number < retry.max_retries:
            context.log.warning(f"to be tried again: {e}")
            raise dg.RetryRequested(retry.max_retries, _delay(retry, context.retry_number + 1)) from e
        _say_that_it_failed(context)
        raise dg.Failure(str(e), metadata={"remedy": e.remedy}, allow_retries=False) from e
    except Exception as e:
        _say_that_it_failed(context)
        raise dg.Failure(scrub(f"unexpected {type(e).__name__}: {e}"), allow_retries=False) from e
    except dg.DagsterExecutionInterruptedError:
        # A person ended the run, or it took too long. Where nobody did, its pod or machine is being taken away.
        run = find_run(context.instance, context.run.run_id)
        if run and run.status is dg.DagsterRunStatus.CANCELING:
            _say_that_it_failed(context)
        raise


def _say_that_it_failed(context: dg.AssetExecutionContext) -> None:
    """Tell this run from one that is killed. Never fails, for the error that is under way says more."""
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
    """Have this process told to stop when that of its run is gone.

    A step outlives a run that is killed, and what it goes on to do, the next run of the tenant does as well.
    """
    run = multiprocessing.parent_process()
    if run is None:
        return

    def watch() -> None:
        run.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-the-run", daemon=True).start()


def should_skip(context: dg.AssetExecutionContext, module: str) -> bool:
    """Whether to leave a module to another run of the tenant. Says so in a line, for that is no failure."""
    why = _concurrent_run(context) or _newer_outcome(context, module)
    if why is None:
        return False
    context.log.warning(f"skipped: {why}")
    context.instance.add_run_tags(context.run.run_id, {SKIPPED_TAG: why})
    return True


def _concurrent_run(context: dg.AssetExecutionContext) -> str | None:
    """That another run of the tenant began earlier and has not ended.

    Queued runs wait for each other; this is for those that are executed in the process of a command. Of two runs the
    one that began earlier goes on, whichever looks first: when a run began is written once, and before its steps run.
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
    """That another run came to this module's outcome after the sensor had launched this one.

    That happens with two daemons, or when a person runs what is queued. A run that people start is theirs to repeat.
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
