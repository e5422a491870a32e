"""Configured tenants, and what Dagster has recorded of their runs."""

from collections.abc import Sequence
from datetime import datetime

import dagster as dg
from dagster._core.test_utils import create_run_for_test

from autoopt_pipeline.names import FAILED_TAG
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore

MODULES = ["modality", "routing"]


def configure(store: TenantConfigStore, tenant: str, **fields: object) -> None:
    agents = [{"name": "search_agent"}, {"name": "report_agent"}]
    config = {"tenant_id": tenant, "agents": agents, "modules": {name: {} for name in MODULES}, **fields}
    write_config(store, RoutingConfigUnified.model_validate(config))


def materialize(
    instance: dg.DagsterInstance, tenant: str, module: str, *, traces: int, end: datetime, models: Sequence[str] = ()
) -> None:
    metadata = {
        "models": dg.MetadataValue.json(list(models)),
        "window_end": dg.MetadataValue.timestamp(end),
        "spans_read": traces,
        "annotation_total": 0,
    }
    instance.report_runless_asset_event(dg.AssetMaterialization(module, partition=tenant, metadata=metadata))


def failed_run(instance: dg.DagsterInstance, tenant: str, modules: list[str], **tags: str) -> str:
    """A run that failed and says so itself, as its steps do."""
    return lost_run(instance, tenant, modules, {FAILED_TAG: "yes", **tags})


def lost_run(instance: dg.DagsterInstance, tenant: str, modules: list[str], tags: dict[str, str] | None = None) -> str:
    """A run that failed without a word, as one does whose process is killed."""
    run = create_run_for_test(
        instance,
        tags={"dagster/partition": tenant, **(tags or {})},
        asset_selection=frozenset(dg.AssetKey(module) for module in modules),
    )
    instance.report_run_failed(run)
    return run.run_id
