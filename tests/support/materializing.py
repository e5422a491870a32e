"""Materializing the assets of a tenant in this process, and reading what came of it."""

import dagster as dg

from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS
from autoopt_pipeline.orchestration.assets import build_module_assets
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.orchestration.resources import Services

ACME = SAMPLE_TENANTS[0]


def materialize(
    instance: dg.DagsterInstance, tenant: str, modules: list[str], tags: dict[str, str] | None = None
) -> dg.ExecuteInProcessResult:
    register_tenant(instance, tenant)
    return dg.materialize(
        build_module_assets(),
        selection=modules,
        partition_key=tenant,
        instance=instance,
        resources={"services": Services()},
        raise_on_error=False,
        tags=tags,
    )


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    (event,) = result.filter_events(lambda e: e.event_type is dg.DagsterEventType.STEP_FAILURE)
    error = event.step_failure_data.user_failure_data
    assert error is not None
    return error.description or ""


def metadata_of(result: dg.ExecuteInProcessResult, module: str) -> dict:
    (event,) = result.asset_materializations_for_node(module)
    return {name: value.value for name, value in event.metadata.items()}
