"""The Dagster code location: assets, jobs, sensors and resources.

Loading it does not import DSPy, LiteLLM, pandas or Kubernetes; a run imports them when it needs them.
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

# Dagster stores the logs of runs and sensors, so no secret may get into the logs of this process or of a run's.
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
                description="All modules of a tenant, enabled or not; for backfills from the command line.",
            )
        ],
        sensors=[*sensors, *build_alert_sensors(settings, [sensor.name for sensor in sensors])],
        resources={"services": Services()},
        executor=module_executor,
    )


try:
    defs = _definitions()
except AutooptError as e:
    # Dagster shows the error with its stack, and the stack of a wrong setting does not help anybody.
    raise e.with_traceback(None) from None
