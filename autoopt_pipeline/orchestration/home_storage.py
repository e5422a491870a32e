"""Dagster's local storage with a `base_dir` relative to DAGSTER_HOME. `dagster.yaml` names these classes.

In Dagster itself it is relative to the current folder, so a command elsewhere would use another, empty instance.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData


class HomeSqliteStorage(DagsterSqliteStorage):
    """Runs, events and schedules."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        return cls.from_local(_in_home(config_value["base_dir"]), inst_data)


class HomeArtifactStorage(LocalArtifactStorage):
    """Files of runs."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        return cls(_in_home(config_value["base_dir"]), inst_data)


class HomeComputeLogManager(LocalComputeLogManager):
    """Output of runs."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        return cls(_in_home(config_value["base_dir"]), config_value.get("polling_timeout"), inst_data)


def _in_home(folder: str) -> str:
    # Without DAGSTER_HOME, Dagster reads the dagster.yaml of the current folder.
    home = Path(os.environ.get("DAGSTER_HOME") or ".").expanduser().absolute()
    return str(home / folder)
