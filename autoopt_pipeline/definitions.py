"""Where everything is wired together: what Dagster loads.

Loads without importing DSPy, LiteLLM, pandas or Kubernetes; only a run imports what it needs.
"""

import dagster as dg

from autoopt_pipeline.orchestration.alerting import build_alerting
from autoopt_pipeline.orchestration.assets import build_module_assets
from autoopt_pipeline.orchestration.executor import module_executor
from autoopt_pipeline.orchestration.sensors import build_sensors
from autoopt_pipeline.orchestration.services import Services
from autoopt_pipeline.settings import load_settings

_settings = load_settings()
_assets = build_module_assets()
_sensors = build_sensors(_settings, dg.AssetSelection.assets(*(asset.key for asset in _assets)))

defs = dg.Definitions(
    assets=_assets,
    sensors=[*_sensors, *build_alerting(_settings, [sensor.name for sensor in _sensors])],
    resources={"services": Services()},
    executor=module_executor,
)
