"""Sensor that keeps the partitions equal to the tenants with a configuration."""

from collections.abc import Sequence

import dagster as dg

from autoopt_pipeline.errors import (
    InvalidTenantId,
    TenantConfigsMissing,
)
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.names import PARTITIONS_SENSOR
from autoopt_pipeline.orchestration.partitions import registered_tenants, tenants_partitions
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.run_history.runs import unfinished_runs
from autoopt_pipeline.secrets import scrubbing_errors
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.tenants.stores.base import TenantConfigStore

_GONE_PER_TICK = 100
"""Tenants with a partition and no configuration that one tick looks up, one by one."""


def partitions_sensor(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name=PARTITIONS_SENSOR,
        description="Keeps the partitions equal to the tenants that have a configuration.",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    @scrubbing_errors()
    def tenant_partitions_sensor(
        context: dg.SensorEvaluationContext, services: Services
    ) -> dg.SensorResult | dg.SkipReason:
        configs = services.connect().configs
        configured = set()
        for tenant in configs.current():
            try:
                configured.add(validate_tenant_id(tenant))
            except InvalidTenantId as e:
                context.log.error(str(e))
        registered = registered_tenants(context.instance)
        gone, lost = removed_and_lost(configs, sorted(registered - configured)[:_GONE_PER_TICK])
        added, removed, waiting = partition_changes(
            configured, registered, gone, set(unfinished_runs(context.instance, modules()))
        )
        if waiting:
            context.log.info(f"removed once their run has finished: {', '.join(waiting)}")
        if not added and not removed and lost:
            raise TenantConfigsMissing(
                f"{len(lost)} tenants that nobody removed have no configuration any more, first {lost[0]}",
                "restore the configuration store, see that it evicts nothing ('autoopt doctor'), and save their "
                "configurations again; or delete these partitions in Dagster",
            )
        if not added and not removed:
            return dg.SkipReason(f"the {len(configured)} tenants are the partitions")
        requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
        if added:
            requests.append(tenants_partitions.build_add_request(added))
        if removed:
            requests.append(tenants_partitions.build_delete_request(removed))
        return dg.SensorResult(dynamic_partitions_requests=requests)

    return tenant_partitions_sensor


def removed_and_lost(configs: TenantConfigStore, tenants: Sequence[str]) -> tuple[set[str], list[str]]:
    """Of tenants without a configuration, those that were removed, and those whose configuration was lost."""
    removed = set()
    for tenant in tenants:
        history = configs.history(tenant)
        if history and history[-1].document is None:
            removed.add(tenant)
    return removed, [tenant for tenant in tenants if tenant not in removed]


def partition_changes(
    configured: set[str], registered: set[str], gone: set[str], with_unfinished_run: set[str]
) -> tuple[list[str], list[str], list[str]]:
    """Partitions to add, to remove now, and to remove later because a run of theirs is not finished.

    Removing a partition under a run would lose the run's materialization.
    """
    return (
        sorted(configured - registered),
        sorted(gone - with_unfinished_run),
        sorted(gone & with_unfinished_run),
    )
