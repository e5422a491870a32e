"""`run_history/` is the only room that reads Dagster's runs, events, ticks and heartbeats."""

import ast
from pathlib import Path

import dagster as dg
import pytest

import autoopt_pipeline

PACKAGE = Path(autoopt_pipeline.__file__).parent
ROOM = PACKAGE / "run_history"

STORAGES = {"daemon_cursor_storage", "event_log_storage", "run_storage", "schedule_storage"}

NO_HISTORY = {"get_concurrency_config", "get_dynamic_partitions"}
"""A setting of the instance, and the partitions, which `orchestration/partitions.py` defines and therefore reads."""

PREFIXES = ("all_", "fetch_", "get_", "has_", "logs_after", "watch_event_logs")

READING = {name for name in dir(dg.DagsterInstance) if name.startswith(PREFIXES)} - NO_HISTORY | STORAGES
"""Everything with which the installed release of Dagster reads what has happened."""


def reads_in(path: Path) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE.parent)}:{node.lineno}: {node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in READING
    ]


def test_no_other_room_reads_what_dagster_has_stored() -> None:
    others = [path for path in PACKAGE.rglob("*.py") if ROOM not in path.parents]
    assert [read for path in others for read in reads_in(path)] == []


@pytest.mark.parametrize(
    "name",
    [
        "all_instigator_state",
        "all_logs",
        "daemon_cursor_storage",
        "fetch_materializations",
        "fetch_observations",
        "fetch_run_status_changes",
        "get_daemon_statuses",
        "get_records_for_run",
        "get_run_by_id",
        "get_run_record_by_id",
        "get_run_records",
        "get_runs",
        "get_ticks",
    ],
)
def test_what_the_room_reads_with_is_seen_by_the_guard(name: str) -> None:
    read = [read for path in ROOM.rglob("*.py") for read in reads_in(path)]
    assert any(line.endswith(f": {name}") for line in read)
