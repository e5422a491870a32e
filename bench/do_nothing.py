"""A run launcher whose runs are canceled at once, for measuring what comes before."""

import time
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.launcher import LaunchRunContext, RunLauncher
from dagster._serdes import ConfigurableClass, ConfigurableClassData


class DoNothing(RunLauncher, ConfigurableClass):
    """Cancels every run, for Dagster reads all that are under way whenever it looks at its queue.

    Waits `seconds` before, as for an answer of Kubernetes.
    """

    def __init__(self, seconds: float, inst_data: ConfigurableClassData | None = None) -> None:
        self._seconds = seconds
        self._inst_data = inst_data
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {"seconds": dg.Field(float)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> "DoNothing":
        return cls(config_value["seconds"], inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        time.sleep(self._seconds)
        self._instance.report_run_canceled(context.dagster_run)

    def terminate(self, run_id: str) -> bool:
        return False
