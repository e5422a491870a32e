"""Progress of runs: written to the run's log, to a waiting command and to Dagster's storage, and read from there.

The table is the one of key-value pairs that Dagster's run storage has for its daemons: one row for a (tenant, module),
overwritten every few seconds (2 ms on SQLite, 4 ms on Postgres), and hundreds are read in one query. A tag of the run
would cost twice as much and rewrite the run's own row. Dagster does not declare `daemon_cursor_storage` public, so only
this file uses it, under a contract test.
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
"""Least time between two lines in the log of the run."""

LOGGED_AS = "progress: "
"""The beginning of these lines."""

_LONGEST = 2000
"""Characters of a row that are read; this project writes no longer ones."""

_CHUNK = 1000

_RECENT = timedelta(seconds=30)

_log = logging.getLogger(__name__)

ShowProgress = Callable[[str, Progress | None], None]
"""Takes a module and its progress, None once its long phase has ended."""

_listeners: dict[str, ShowProgress] = {}
"""By run, for the runs of this process."""


class RunProgress(Strict):
    """The progress of a run at a moment (UTC)."""

    run_id: str = Field(max_length=100)
    at: AwareDatetime
    progress: Progress

    def describe(self, now: datetime) -> str:
        """In words, with its age where the process has reported nothing for a while."""
        age = "" if now - self.at < _RECENT else f"; nothing was heard since, {ago(self.at, now)}"
        return f"{self.progress}{age}"


@contextmanager
def listening(run_id: str, show: ShowProgress | None) -> Generator[None, None, None]:
    """Call `show` every second of a long phase while a run is executed in this process."""
    if show:
        _listeners[run_id] = show
    try:
        yield
    finally:
        _listeners.pop(run_id, None)


class StepProgress:
    """Reports the progress of one module of a run. An error in that never stops the run; the report is left out."""

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
            _log.warning("run %s of %s: its progress is not reported: %s", self._run_id, self._module, e)

    def _store(self, progress: Progress | None) -> None:
        phase, now = progress.phase if progress else None, time.monotonic()
        if phase == self._stored_phase and now - self._stored_at < STORED_SECONDS:
            return
        current = RunProgress(run_id=self._run_id, at=datetime.now(UTC), progress=progress) if progress else None
        _write(self._context.instance, (self._context.partition_key, self._module), current)
        self._stored_phase, self._stored_at = phase, now

    def _write_line(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._logged_at >= LOGGED_SECONDS:
            self._logged_at = now
            self._context.log.info(f"{LOGGED_AS}{progress}")


def read_progress(instance: dg.DagsterInstance, running: Mapping[ModuleKey, str]) -> dict[ModuleKey, RunProgress]:
    """The progress of these modules, given their runs. Modules that are in no long phase have none."""
    by_module = {}
    keys = {_row(key): key for key in running}
    rows = sorted(keys)
    for start in range(0, len(rows), _CHUNK):
        for row, text in instance.daemon_cursor_storage.get_cursor_values(set(rows[start : start + _CHUNK])).items():
            progress = _parse(text)
            if progress and progress.run_id == running[keys[row]]:
                by_module[keys[row]] = progress
    return by_module


def read_module_progress(instance: dg.DagsterInstance, tenant: str, module: str) -> RunProgress | None:
    """The progress of one module; None where no run is under way, or it is in no long phase."""
    row = _row((tenant, module))
    progress = _parse(instance.daemon_cursor_storage.get_cursor_values({row}).get(row, ""))
    run = find_run(instance, progress.run_id) if progress else None
    under_way = run is not None and run.status in UNFINISHED and run.tags.get(PARTITION_TAG) == tenant
    return progress if under_way else None


def _write(instance: dg.DagsterInstance, key: ModuleKey, progress: RunProgress | None) -> None:
    instance.daemon_cursor_storage.set_cursor_values({_row(key): progress.model_dump_json() if progress else ""})


def _parse(text: str) -> RunProgress | None:
    try:
        return RunProgress.model_validate_json(text) if 0 < len(text) <= _LONGEST else None
    except ValidationError:
        return None


def _row(key: ModuleKey) -> str:
    return f"autoopt/progress/{key[0]}/{key[1]}"
