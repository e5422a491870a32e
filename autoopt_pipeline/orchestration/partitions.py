"""Tenants as dynamic partitions."""

from collections.abc import Collection
from contextlib import suppress

import dagster as dg
from sqlalchemy.exc import IntegrityError

from autoopt_pipeline.modules.catalog import module_names, modules

tenants_partitions = dg.DynamicPartitionsDefinition(name="tenants")

PARTITION_TAG = "dagster/partition"

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def registered_tenants(instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_dynamic_partitions("tenants"))


def register_tenant(instance: dg.DagsterInstance, tenant_id: str) -> None:
    """Make the tenant a partition, so that it can be materialized at once."""
    # Dagster looks first and writes then; in between the sensor, or somebody else, may have made it one.
    with suppress(IntegrityError):
        instance.add_dynamic_partitions("tenants", [tenant_id])


def withdraw_tenant(instance: dg.DagsterInstance, tenant_id: str) -> bool:
    """Take away the partition of a removed tenant. False while a run is under way: the sensor does it afterwards."""
    if tenant_id in unfinished_runs(instance, module_names()):
        return False
    if tenant_id in registered_tenants(instance):
        instance.delete_dynamic_partition("tenants", tenant_id)
    return True


OPTIMIZE_JOB = "optimize"
"""The job of all modules, for backfills by command and schedules of one's own."""


def selected_modules(run: dg.DagsterRun) -> set[str]:
    """The assets that a run materializes, by name. Runs of anything else have none."""
    if run.asset_selection is None and run.job_name == OPTIMIZE_JOB:
        return set(modules())
    return {key.to_user_string() for key in run.asset_selection or ()}


def unfinished_runs(instance: dg.DagsterInstance, of: Collection[str]) -> dict[str, str]:
    """Tenants with a run of any of these modules that is queued or under way, with that run's id. One query."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return {
        run.tags[PARTITION_TAG]: run.run_id
        for run in runs
        if PARTITION_TAG in run.tags and selected_modules(run).intersection(of)
    }
