"""The input of a run of one module: its configuration, its window and the decisions in it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.scheduling.conditions import learnt_from
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.tenants.stores.base import StoredConfig

if TYPE_CHECKING:
    from autoopt_pipeline.traces.reader import Collected


@dataclass(frozen=True)
class Material:
    """The input of a run of one module."""

    config: RoutingConfigUnified
    config_version: int
    start: datetime
    end: datetime
    collected: "Collected"


def gather(
    connections: Connections,
    spec: ModuleSpec,
    config: RoutingConfigUnified,
    entry: StoredConfig,
    *,
    end: datetime,
    log: Callable[[str], None] = lambda line: None,
) -> Material:
    """Read the traces of a run whose window ends at `end`. Raises the errors of Phoenix and the artifact store."""
    # DSPy, pandas and the Phoenix client take seconds to import, so only runs import them.
    from autoopt_pipeline.evaluation.sequential_test_log import oldest_awaiting
    from autoopt_pipeline.traces.reader import collect

    tenant = config.tenant_id
    labels_of(spec, config)
    start = learnt_from(config, until=end, begins=entry.since)
    log(f"reading traces of {tenant} from {start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC")
    # The traces that await reviews were drawn earlier, and may have left the lookback since.
    awaiting = oldest_awaiting(connections.artifacts(tenant, spec.name))
    read_from = min(start, awaiting) if awaiting else start
    collected = collect(connections.phoenix, tenant, spec, start=read_from, end=end)
    learnable = collected.without(frozenset(config.excluded_traces))
    return Material(config, entry.version, start, end, learnable)
