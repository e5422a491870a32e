"""Names that people see in Dagster and that several rooms use: sensors, the job, the pool, tags of runs."""

OPTIMIZATION_SENSOR = "auto_optimization_sensor"
PARTITIONS_SENSOR = "tenant_partitions_sensor"
ROLLOUT_SENSOR = "rollout_monitor_sensor"
RETENTION_SENSOR = "run_retention_sensor"

TENANTS_PARTITIONS = "tenants"

OPTIMIZE_JOB = "optimize"
"""The job of all modules, for backfills by command and schedules of one's own."""

LM_POOL = "lm"
"""Pool of all steps that ask language models, in whatever run; `dagster.yaml` says how many may go at once."""

PARTITION_TAG = "dagster/partition"

MAX_RUNTIME_TAG = "dagster/max_runtime"
"""Dagster's run monitoring ends the run after so many seconds."""

STARTED_BY_TAG = "autoopt/started_by"
"""Who asked for a run on the dashboard."""

WINDOW_END_TAG = "autoopt/window_end"
"""Traces before this moment (UTC) are read, so that a retried run sees the same."""

NEW_EVIDENCE_TAG = "autoopt/new_evidence"
"""`module=traces+annotations`, comma-separated, that made each module due."""

ATTEMPT_TAG = "autoopt/attempt"
"""The run whose work this one takes up, because that run was lost."""

SKIPPED_TAG = "autoopt/skipped"
"""Why a module of the run was left to another run, in words. Such a run succeeds, and has no outcome of the module."""

FAILED_TAG = "autoopt/failed"
"""That a step of the run failed with an error of its own. A run that failed without it was lost: its process, or a
step's, was killed, or it never began. The same for all steps, for of two that are added at once one may be lost."""
