"""The daemon that evaluates the code location's sensors, in a test's order."""

import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import dagster as dg
import pytest
from dagster._core.remote_representation.external import RemoteSensor
from dagster._core.scheduler.instigation import InstigatorTick
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon import sensor as daemon

from autoopt_pipeline.run_history.ticks import finished_ticks, sensor_states


class Daemon:
    """Ticks of the code location's sensors, evaluated in its server as the daemon does it, in a test's order."""

    def __init__(
        self, instance: dg.DagsterInstance, workspace: WorkspaceProcessContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(daemon, "shuffled_round_robin_by_key", self._wanted)
        monkeypatch.setattr(daemon, "is_under_min_interval", lambda *_: False)
        self._instance = instance
        self._workspace = workspace
        self._name = ""

    def _wanted(self, sensors: Iterable[RemoteSensor], key: object) -> list[RemoteSensor]:
        return [sensor for sensor in sensors if sensor.name == self._name]

    def tick(self, *names: str) -> list[InstigatorTick]:
        ticks = []
        for self._name in names:
            list(daemon.execute_sensor_iteration(self._workspace, logging.getLogger(__name__), None, None))
            ticks += finished_ticks(self._instance, sensor_states(self._instance)[self._name], limit=1)
        return ticks


@contextmanager
def daemon_of(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Generator[Daemon]:
    target = ModuleTarget("autoopt_pipeline.definitions", None, None, "autoopt")
    with create_test_daemon_workspace_context(target, instance) as workspace:
        yield Daemon(instance, workspace, monkeypatch)
