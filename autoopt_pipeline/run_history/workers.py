"""What executes a run: its process or its Job, as the run's events name it."""

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg


def processes_of(instance: dg.DagsterInstance, run_id: str) -> Iterator[tuple[int, datetime]]:
    """The processes that the run has reported, each with the time (UTC) of the report.

    Whoever started a process, it reports its number in its first event.
    """
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        if event and (pid := event.engine_event_data.metadata.get("pid")):
            yield int(str(pid.value)), datetime.fromtimestamp(entry.timestamp, UTC)


def was_launched(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a launcher has begun the run, and not a command in its own process."""
    return bool(instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_STARTING))
