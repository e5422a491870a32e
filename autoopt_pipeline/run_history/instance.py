"""The Dagster instance of a home folder: opened from a command, with its storage and its daemons."""

import os
import re
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from autoopt_pipeline.errors import InvalidSettings

if TYPE_CHECKING:
    from dagster._daemon.types import DaemonStatus

_UNSET = re.compile(r'environment variable "(\w+)" which is not set')
"""Dagster names it at the end of a page about its own types."""


@contextmanager
def open_instance(home: Path) -> Generator[dg.DagsterInstance, None, None]:
    """The instance whose `dagster.yaml` is in `home`, which is DAGSTER_HOME meanwhile, for processes of runs too."""
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        try:
            instance = dg.DagsterInstance.from_config(str(home))
        except (OSError, dg.DagsterError) as e:
            if unset := _UNSET.search(str(e)):
                raise InvalidSettings(
                    f"{home / 'dagster.yaml'} wants the environment variable {unset[1]}, which is not set",
                    "set it as where Dagster runs",
                ) from e
            raise InvalidSettings(f"Dagster instance in {home}: {e}", "check DAGSTER_HOME and its dagster.yaml") from e
        with instance:
            yield instance
    finally:
        # A check of the doctor may outlive its command in a thread, when what it would undo is no longer its own.
        if os.environ.get("DAGSTER_HOME") == str(home):
            if before is None:
                del os.environ["DAGSTER_HOME"]
            else:
                os.environ["DAGSTER_HOME"] = before


def describe_storage(instance: dg.DagsterInstance) -> str:
    """Which database holds the runs, and how many there are."""
    storage = type(instance.run_storage).__name__.removesuffix("RunStorage")
    return f"{storage} storage with {instance.get_runs_count()} runs"


def daemon_statuses(instance: dg.DagsterInstance) -> "Collection[DaemonStatus]":
    """The state of each daemon, with its last heartbeat.

    Dagster does not declare this call public; a test holds it to a real instance.
    """
    return instance.get_daemon_statuses().values()
