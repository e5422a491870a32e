"""What two versions that serve side by side decided, and what became of it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.online_score import live_outcome
from autoopt_pipeline.modules.spec import Label, LoggedDecision, ModuleSpec
from autoopt_pipeline.registry.transitions import Watch
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.analysis import MAX_DECISIONS, RolloutAnalysis, Side, judge_watch
from autoopt_pipeline.span_contract import ARM, BASELINE, CANARY, MODULE, PROGRAM_VERSION, project_name
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.tenants.store import read_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import CountRequest, Phoenix
from autoopt_pipeline.traces.reader import read_decisions


def look_now(
    phoenix: Phoenix, configs: TenantConfigStore, artifacts: VersionStore, watch: Watch, *, settling_seconds: float
) -> RolloutAnalysis:
    """How an open watch stands, for who asks; nothing comes of it. Decisions that may still be on their way to Phoenix
    do not count. Raises `UnknownTenant` or `InvalidConfig`, and what `Phoenix` raises."""
    config, _ = read_config(configs, artifacts.tenant_id)
    until = datetime.now(UTC) - timedelta(seconds=settling_seconds)
    return look_at(phoenix, config, get_module(artifacts.module), watch, until=until)


def look_at(
    phoenix: Phoenix, config: RoutingConfigUnified, spec: ModuleSpec, watch: Watch, *, until: datetime
) -> RolloutAnalysis:
    """Compare what both versions decided before `until` (UTC)."""
    newer, older = read_sides(phoenix, config.tenant_id, spec, labels_of(spec, config), watch, until=until)
    longest = timedelta(days=config.watch.max_days)
    return judge_watch(newer, older, age=until - watch.move.at, longest=longest)


def read_sides(
    phoenix: Phoenix, tenant_id: str, spec: ModuleSpec, labels: Sequence[Label], watch: Watch, *, until: datetime
) -> tuple[Side, Side]:
    """Both versions' decisions since the watch began: the newer version's, and those of the one it is compared with.

    Only what the spans say was decided by these versions under this watch counts. Of much traffic the first decisions
    are read, twice `MAX_DECISIONS` at most. A tenant without a project has no decisions.
    """
    project = phoenix.project(project_name(tenant_id))
    if project is None:
        return Side(), Side()
    start, end = watch.move.at, until
    while phoenix.count([window := CountRequest(project.id, spec.contract.span_name, start, end)])[window] > (
        2 * MAX_DECISIONS
    ):
        end = start + (end - start) / 2
    found = read_decisions(phoenix, project, spec, start=start, end=end, also=(MODULE, PROGRAM_VERSION, ARM))
    found = [decision for decision in found if decision.attributes[MODULE] == spec.name]
    return (
        _side(spec, labels, found, watch.version, as_canary=watch.is_canary),
        _side(spec, labels, found, watch.against, as_canary=not watch.is_canary),
    )


def _side(
    spec: ModuleSpec, labels: Sequence[Label], found: Sequence[LoggedDecision], version: str | None, *, as_canary: bool
) -> Side:
    """What one version decided. Before a server has read the new pointer, its requests are in no comparison: there the
    predecessor still serves as the active version."""
    own = [
        decision
        for decision in found
        if decision.attributes[PROGRAM_VERSION] == (version or BASELINE)
        and (decision.attributes[ARM] == CANARY) == as_canary
    ]
    outcomes = (live_outcome(spec, labels, decision) for decision in own)
    return Side(len(own), tuple(outcome for outcome in outcomes if outcome))
