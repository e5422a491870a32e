"""Where everything is wired together: what Dagster loads.

Loads without importing DSPy, LiteLLM, pandas or Kubernetes; only a run imports what it needs.
"""

import dagster as dg

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.names import OPTIMIZE_JOB
from autoopt_pipeline.orchestration.assets import build_module_assets
from autoopt_pipeline.orchestration.executor import module_executor
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.orchestration.sensors.alerts import build_alert_sensors
from autoopt_pipeline.orchestration.sensors.optimization import build_sensors
from autoopt_pipeline.orchestration.sensors.retention import build_retention_sensor
from autoopt_pipeline.secrets import guard_process
from autoopt_pipeline.settings import load_settings

# What runs and sensors log is kept by Dagster. Of this process and all that execute what is defined here.
guard_process()


def _definitions() -> dg.Definitions:
    settings = load_settings()
    assets = build_module_assets()
    all_modules = dg.AssetSelection.assets(*(asset.key for asset in assets))
    sensors = build_sensors(settings, all_modules)
    if settings.run_retention_days:
        sensors.append(build_retention_sensor(settings))
    return dg.Definitions(
        assets=assets,
        jobs=[
            dg.define_asset_job(
                OPTIMIZE_JOB,
                all_modules,
                description="All modules of a tenant, whether it has them on or not; for backfills by command.",
            )
        ],
        sensors=[*sensors, *build_alert_sensors(settings, [sensor.name for sensor in sensors])],
        resources={"services": Services()},
        executor=module_executor,
    )


try:
    defs = _definitions()
except AutooptError as e:
    # Dagster shows the error with its stack, and the stack of a wrong setting says nothing to a person.
    raise e.with_traceback(None) from None
