"""Names in Dagster that several rooms use: sensors, the job, the pool, tags of runs."""

OPTIMIZATION_SENSOR = "auto_optimization_sensor"
PARTITIONS_SENSOR = "tenant_partitions_sensor"
ROLLOUT_SENSOR = "rollout_monitor_sensor"
QUALITY_SENSOR = "live_quality_sensor"
RETENTION_SENSOR = "run_retention_sensor"

TENANTS_PARTITIONS = "tenants"

# The job of all modules, for backfills from the command line and custom schedules.
OPTIMIZE_JOB = "optimize"

# Pool of all steps that call language models, in any run; `dagster.yaml` limits how many run at once.
LM_POOL = "lm"

PARTITION_TAG = "dagster/partition"

# Seconds after which Dagster's run monitoring ends the run.
MAX_RUNTIME_TAG = "dagster/max_runtime"

# The user who started a run on the dashboard.
STARTED_BY_TAG = "autoopt/started_by"

# The run reads traces before this moment (UTC), so that a retried run reads the same ones.
WINDOW_END_TAG = "autoopt/window_end"

# The new evidence that made each module due: `module=traces+annotations`, comma-separated.
NEW_EVIDENCE_TAG = "autoopt/new_evidence"

# The lost run whose work this run continues.
ATTEMPT_TAG = "autoopt/attempt"

# The reason why a run left a module to another run. The run succeeds without an outcome of the module.
SKIPPED_TAG = "autoopt/skipped"

# Set if a step of the run failed with an error. A failed run without this tag was lost: its process or a step's was
# killed, or it never began. All steps set the same value, because of two tags added at once one may get lost.
FAILED_TAG = "autoopt/failed"
