"""Tenants as dynamic partitions."""

from contextlib import suppress

import dagster as dg
from sqlalchemy.exc import IntegrityError

from autoopt_pipeline.modules.catalog import module_names
from autoopt_pipeline.names import TENANTS_PARTITIONS
from autoopt_pipeline.run_history.runs import unfinished_runs

tenants_partitions = dg.DynamicPartitionsDefinition(name=TENANTS_PARTITIONS)


def registered_tenants(instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_dynamic_partitions(TENANTS_PARTITIONS))


def register_tenant(instance: dg.DagsterInstance, tenant_id: str) -> None:
    """Add the tenant's partition, so that it can be materialized at once."""
    # Dagster checks before it writes; in between, the sensor or somebody else may have added the partition.
    with suppress(IntegrityError):
        instance.add_dynamic_partitions(TENANTS_PARTITIONS, [tenant_id])


def withdraw_tenant(instance: dg.DagsterInstance, tenant_id: str) -> bool:
    """Delete the partition of a removed tenant. False while a run is under way: the sensor deletes it afterwards."""
    if tenant_id in unfinished_runs(instance, module_names()):
        return False
    if tenant_id in registered_tenants(instance):
        instance.delete_dynamic_partition(TENANTS_PARTITIONS, tenant_id)
    return True
