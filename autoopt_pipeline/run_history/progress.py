"""How far the modules of a run are, told to the run's log, to a command that waits, and to other processes.

For those it stands in the table of key-value pairs that Dagster's run storage has for its daemons: one row for a
(tenant, module), overwritten every few seconds (2 ms on SQLite, 4 ms on Postgres) and read by the hundred in one query.
A tag of the run would be twice as dear, and a write that takes the run's own row along. `daemon_cursor_storage` is no
public part of Dagster, so what is asked of it stands here, under a contract test.
"""

import logging
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import AwareDatetime, Field, ValidationError

from autoopt_pipeline.lm.progress import Progress
from autoopt_pipeline.names import PARTITION_TAG
from autoopt_pipeline.run_history.outcomes import ModuleKey
from autoopt_pipeline.run_history.runs import UNFINISHED, find_run
from autoopt_pipeline.text import ago
from autoopt_pipeline.validation import Strict

STORED_SECONDS = 5.0
"""Least time between two writes while a phase lasts."""

LOGGED_SECONDS = 20.0
"""Least time between two lines in the run's log."""

LOGGED_AS = "progress: "
"""How these lines begin."""

_LONGEST = 2000
"""Characters of a row that are read; more has not been written by us."""

_CHUNK = 1000

_TOLD_LATELY = timedelta(seconds=30)

_log = logging.getLogger(__name__)

ShowProgress = Callable[[str, Progress | None], None]
"""Gets a module and how far it is, None once its long phase has ended."""

_listeners: dict[str, ShowProgress] = {}
"""By run, for those that are executed in this process."""


class RunProgress(Strict):
    """How far a run was at a moment (UTC)."""

    run_id: str = Field(max_length=100)
    at: AwareDatetime
    progress: Progress

    def told(self, now: datetime) -> str:
        """In words; with its age where its process has told nothing for a while."""
        age = "" if now - self.at < _TOLD_LATELY else f"; nothing was heard since, {ago(self.at, now)}"
        return f"{self.progress}{age}"


@contextmanager
def listening(run_id: str, show: ShowProgress | None) -> Generator[None, None, None]:
    """Have `show` called while a run is executed in this process, every second of a long phase."""
    if show:
        _listeners[run_id] = show
    try:
        yield
    finally:
        _listeners.pop(run_id, None)


class StepProgress:
    """Tells how far one module of a run is. What cannot be told must not stop what is done: it is left out."""

    def __init__(self, context: dg.AssetExecutionContext, module: str) -> None:
        self._context, self._module = context, module
        self._run_id = context.run.run_id
        self._stored_at = self._logged_at = time.monotonic()
        self._stored_phase: str | None = None

    def __call__(self, progress: Progress | None) -> None:
        try:
            if show := _listeners.get(self._run_id):
                show(self._module, progress)
            self._store(progress)
            if progress:
                self._write_line(progress)
        except Exception as e:  # noqa: BLE001 - of whatever storage Dagster has
            _log.warning("run %s of %s: its progress is not told: %s", self._run_id, self._module, e)

    def _store(self, progress: Progress | None) -> None:
        phase, now = progress.phase if progress else None, time.monotonic()
        if phase == self._stored_phase and now - self._stored_at < STORED_SECONDS:
            return
        told = RunProgress(run_id=self._run_id, at=datetime.now(UTC), progress=progress) if progress else None
        _write(self._context.instance, (self._context.partition_key, self._module), told)
        self._stored_phase, self._stored_at = phase, now

    def _write_line(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._logged_at >= LOGGED_SECONDS:
            self._logged_at = now
            self._context.log.info(f"{LOGGED_AS}{progress}")


def read_progress(instance: dg.DagsterInstance, running: Mapping[ModuleKey, str]) -> dict[ModuleKey, RunProgress]:
    """How far these are, by the runs that are under way. Left out is what is in no long phase, or not understood."""
    found = {}
    keys = {_row(key): key for key in running}
    rows = sorted(keys)
    for start in range(0, len(rows), _CHUNK):
        for row, text in instance.daemon_cursor_storage.get_cursor_values(set(rows[start : start + _CHUNK])).items():
            told = _parse(text)
            if told and told.run_id == running[keys[row]]:
                found[keys[row]] = told
    return found


def read_module_progress(instance: dg.DagsterInstance, tenant: str, module: str) -> RunProgress | None:
    """How far one module is, where its run is under way and in a long phase."""
    row = _row((tenant, module))
    told = _parse(instance.daemon_cursor_storage.get_cursor_values({row}).get(row, ""))
    run = find_run(instance, told.run_id) if told else None
    under_way = run is not None and run.status in UNFINISHED and run.tags.get(PARTITION_TAG) == tenant
    return told if under_way else None


def _write(instance: dg.DagsterInstance, key: ModuleKey, told: RunProgress | None) -> None:
    instance.daemon_cursor_storage.set_cursor_values({_row(key): told.model_dump_json() if told else ""})


def _parse(text: str) -> RunProgress | None:
    try:
        return RunProgress.model_validate_json(text) if 0 < len(text) <= _LONGEST else None
    except ValidationError:
        return None


def _row(key: ModuleKey) -> str:
    return f"autoopt/progress/{key[0]}/{key[1]}"
