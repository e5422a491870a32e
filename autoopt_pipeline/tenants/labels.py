"""The labels that a tenant's program chooses from."""

from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.modules.spec import Label, ModuleSpec
from autoopt_pipeline.tenants.config import RoutingConfigUnified

# With fewer labels there is nothing to decide.
MIN_LABELS = 2


def labels_of(spec: ModuleSpec, config: RoutingConfigUnified) -> tuple[Label, ...]:
    """The module's fixed labels, or the tenant's agents. Raises `InvalidConfig` if there are fewer than two."""
    labels = spec.labels or tuple(Label(agent.name, agent.description) for agent in config.agents)
    if len(labels) < MIN_LABELS:
        raise InvalidConfig(
            f"tenant {config.tenant_id}: {spec.name} has {len(labels)} agents to choose from",
            f"list at least {MIN_LABELS} in the tenant's 'agents'",
        )
    return labels
