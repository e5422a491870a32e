"""The runs that a plan asks for: one for a tenant, with its due modules and what they are told in tags."""

from collections.abc import Sequence

import dagster as dg

from autoopt_pipeline.names import ATTEMPT_TAG, MAX_RUNTIME_TAG, NEW_EVIDENCE_TAG, WINDOW_END_TAG
from autoopt_pipeline.orchestration.planner import Plan


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
    """What a run of these modules is told: which traces it reads, how much was new of each, how long it may take.

    A run that takes up the work of one that was lost reads the same traces.
    """
    found = {module: plan.decisions[tenant, module].evidence for module in modules}
    evidence = ",".join(f"{module}={e.new_traces}+{e.new_annotations}" for module, e in found.items() if e)
    tags = {WINDOW_END_TAG: plan.window_end.isoformat(), NEW_EVIDENCE_TAG: evidence}
    lost = {plan.retried(tenant, module) for module in modules}
    if len(lost) == 1 and (again := lost.pop()) and again.window_end:
        tags |= {WINDOW_END_TAG: again.window_end.isoformat(), ATTEMPT_TAG: again.attempt}
    if longest := plan.configs[tenant].max_run_seconds:
        tags[MAX_RUNTIME_TAG] = str(longest)
    return tags
