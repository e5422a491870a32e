"""Requested runs: what the sensor requests for every tenant that is due, and what a person requests for one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import LaunchFailed
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.names import ATTEMPT_TAG, MAX_RUNTIME_TAG, NEW_EVIDENCE_TAG, STARTED_BY_TAG, WINDOW_END_TAG
from autoopt_pipeline.orchestration.launch import LogCallback, RunResult, run_in_process, submit
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.orchestration.planner import Plan, PlanOptions, plan_tenants
from autoopt_pipeline.registry.quality_records import read_falls
from autoopt_pipeline.run_history.progress import ShowProgress
from autoopt_pipeline.scheduling.conditions import Reason, ScheduleDecision
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.stores.base import StoredConfig

_FORCEABLE = {Reason.NOT_DUE, Reason.TOO_FEW_TRACES, Reason.BACKING_OFF}
"""What a person need not wait for."""


def run_requests(plan: Plan, tenants: Sequence[str]) -> list[dg.RunRequest]:
    """One run per tenant, with its due modules."""
    due = plan.due()
    return [
        dg.RunRequest(
            run_key=plan.run_key(tenant),
            partition_key=tenant,
            asset_selection=[dg.AssetKey(module) for module in due[tenant]],
            tags=run_tags(plan, tenant, due[tenant]),
        )
        for tenant in tenants
    ]


def run_tags(plan: Plan, tenant: str, modules: Sequence[str]) -> dict[str, str]:
    """The tags of a run of these modules: which traces it reads, how many are new for each, how long it may take.

    A run that takes up the work of a lost one reads the same traces.
    """
    counted = {module: plan.decisions[tenant, module].evidence for module in modules}
    evidence = ",".join(f"{module}={new.new_traces}+{new.new_annotations}" for module, new in counted.items() if new)
    tags = {WINDOW_END_TAG: plan.window_end.isoformat(), NEW_EVIDENCE_TAG: evidence}
    lost = {plan.retried(tenant, module) for module in modules}
    if len(lost) == 1 and (again := lost.pop()) and again.window_end:
        tags |= {WINDOW_END_TAG: again.window_end.isoformat(), ATTEMPT_TAG: again.attempt}
    if longest := plan.configs[tenant].max_run_seconds:
        tags[MAX_RUNTIME_TAG] = str(longest)
    return tags


@dataclass(frozen=True)
class RequestedRun:
    """A run that a person requests, with the decision about each module that it could have."""

    tenant: str
    plan: Plan
    decisions: Mapping[str, ScheduleDecision]
    force: bool

    @property
    def modules(self) -> list[str]:
        """The modules that may run now."""
        return [module for module, decision in self.decisions.items() if should_run(decision, force=self.force)]


def should_run(decision: ScheduleDecision, *, force: bool) -> bool:
    """Whether a module may run now: it is due, or a person insists and nothing else forbids it."""
    unmet = {condition.otherwise for condition in decision.conditions if condition.met is False}
    return decision.launch or (force and bool(unmet) and unmet <= _FORCEABLE)


def check_request(
    entry: StoredConfig,
    modules: Sequence[str],
    instance: dg.DagsterInstance,
    connections: Connections,
    *,
    force: bool,
    count_all: bool = False,
) -> RequestedRun:
    """Check a request as the sensor checks the tenant. Without `modules`, it is for all that the tenant has enabled.

    `count_all` as in `PlanOptions`. Raises `UnknownModule`, and `InvalidConfig` for an unreadable configuration.
    """
    names = [get_module(name).name for name in modules]
    entry.parse()
    plan = plan_tenants(
        {entry.tenant_id: entry},
        instance,
        connections.phoenix,
        now=datetime.now(UTC),
        settings=connections.settings,
        options=PlanOptions(only_modules=names or None, count_all=count_all),
        falls=read_falls(connections.files),
    )
    decisions = {module: decision for (_, module), decision in plan.decisions.items()}
    enabled = {module: decision for module, decision in decisions.items() if decision.reason is not Reason.DISABLED}
    return RequestedRun(entry.tenant_id, plan, decisions if names else enabled or decisions, force)


def launch_request(
    instance: dg.DagsterInstance, requested: RequestedRun, settings: Settings, *, started_by: str | None = None
) -> str:
    """Hand the run to Dagster's queue, and return its id. Raises `LaunchFailed`, also where no module may run."""
    tags = _prepare(instance, requested) | ({STARTED_BY_TAG: started_by} if started_by else {})
    return submit(instance, settings.resolved_dagster_api_url, requested.tenant, requested.modules, tags)


def execute_request(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    requested: RequestedRun,
    say: LogCallback,
    show: ShowProgress | None = None,
) -> RunResult:
    """Run in this process; `say` and `show` as in `run_in_process`. Raises `LaunchFailed` where no module may run."""
    tags = _prepare(instance, requested)
    return run_in_process(defs, instance, requested.tenant, requested.modules, tags, say, show)


def _prepare(instance: dg.DagsterInstance, requested: RequestedRun) -> dict[str, str]:
    """The tags of the run, whose tenant is a partition from now on: it may have been added a second ago."""
    if not requested.modules:
        raise _not_due(requested)
    register_tenant(instance, requested.tenant)
    return run_tags(requested.plan, requested.tenant, requested.modules)


def _not_due(requested: RequestedRun) -> LaunchFailed:
    module, decision = next(iter(requested.decisions.items()))
    remedy = (
        "tick 'run it all the same', or use --force"
        if should_run(decision, force=True)
        else "a run cannot be forced where the module is disabled or under way, or the day's budget is spent"
    )
    why = f"{decision.reason.value.replace('_', ' ')}, {decision.detail}"
    return LaunchFailed(f"{requested.tenant}/{module} is not due: {why}", remedy)
