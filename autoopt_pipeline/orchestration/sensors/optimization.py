"""Looks at all tenants again and again, and launches one run per tenant that is due."""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from autoopt_pipeline.errors import InvalidTenantId, TenantsLost, TenantsUndecided
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.names import ATTEMPT_TAG, NEW_EVIDENCE_TAG, WINDOW_END_TAG
from autoopt_pipeline.orchestration.partitions import registered_tenants, tenants_partitions, unfinished_runs
from autoopt_pipeline.orchestration.planner import Plan, plan_tenants
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.orchestration.sensors.rollouts import watch_sensor
from autoopt_pipeline.run_history.ticks import OPTIMIZATION_SENSOR, TickReport, tick_report
from autoopt_pipeline.scheduling.conditions import Reason
from autoopt_pipeline.secrets import scrubbing_errors
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.tenants.store import TenantConfigStore

_MAX_RUNTIME_TAG = "dagster/max_runtime"
"""Run tag: Dagster's run monitoring ends the run after so many seconds."""

_GONE_PER_TICK = 100
"""Tenants that are looked up one by one in a tick, because they have a partition and no configuration."""

_SECONDS_PER_TICK = 15.0
"""Dagster ends a tick after 60, and Phoenix, which has one core, is to be free for traffic most of the time."""

_DETAILS_SHOWN = 200
_DETAILS_IN_SUMMARY = 20
"""Lines that one tick writes out; the others are in its counts, and in 'autoopt status'."""


def build_sensors(settings: Settings, assets: dg.AssetSelection) -> list[dg.SensorDefinition]:
    return [_tenant_partitions_sensor(settings), _auto_optimization_sensor(settings, assets), watch_sensor(settings)]


def _tenant_partitions_sensor(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name="tenant_partitions_sensor",
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
            raise TenantsLost(
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
    """Of tenants without a configuration, those that somebody removed, and those whose configuration was lost."""
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


def _auto_optimization_sensor(settings: Settings, assets: dg.AssetSelection) -> dg.SensorDefinition:
    @dg.sensor(
        name=OPTIMIZATION_SENSOR,
        description="Launches one run per tenant with the modules that are due, and says why the others are not.",
        target=assets,
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    @scrubbing_errors()
    def auto_optimization_sensor(
        context: dg.SensorEvaluationContext, services: Services
    ) -> dg.SensorResult | dg.SkipReason:
        connections = services.connect()
        stored = connections.configs.current()
        last = TickReport.load(context.cursor)
        after = last.reached if last else None
        plan = plan_tenants(
            stored,
            context.instance,
            connections.phoenix,
            now=datetime.now(UTC),
            settings=connections.settings,
            seconds=_SECONDS_PER_TICK,
            after=after,
        )
        due = list(plan.due())
        # One request for a partition that does not exist would fail the whole tick.
        registered = registered_tenants(context.instance)
        ready = [tenant for tenant in due if tenant in registered]
        launched = ready[: connections.settings.max_launches_per_tick]
        # Who is held back is asked about again before those who have waited less.
        reached = plan.reached if launched == ready else after
        context.update_cursor(tick_report(plan, reached=reached).model_dump_json())
        _log(context, plan)
        for tenant in due:
            if tenant not in registered:
                context.log.info(f"{tenant}: held back until it is a partition (see tenant_partitions_sensor)")
            elif tenant not in launched:
                context.log.info(f"{tenant}: held back, for a tick launches at most {len(launched)} runs")
        requests = run_requests(plan, launched)
        if requests:
            return dg.SensorResult(run_requests=requests)
        # A module that is not there is its tenants' error. A tick that failed for it would fail until somebody acts.
        missing = plan.missing()
        if errors := {key: error for key, error in plan.errors().items() if key not in missing}:
            (tenant, module), first = next(iter(errors.items()))
            raise TenantsUndecided(
                f"{len(errors)} of {len(plan.decisions)} could not be decided, first {tenant}/{module}: {first.detail}",
                "'autoopt status' shows the others",
            ) from plan.phoenix_error
        return dg.SkipReason(summary(plan))

    return auto_optimization_sensor


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
        tags[_MAX_RUNTIME_TAG] = str(longest)
    return tags


def summary(plan: Plan) -> str:
    """Why nothing was launched, in one line: counts by reason, and the decisions themselves where they are few."""
    counts = ", ".join(f"{count} {reason}" for reason, count in plan.counts().items()) or "no tenants"
    details = [text for _, text in lines(plan)]
    return f"{counts} ({'; '.join(details)})" if 0 < len(details) <= _DETAILS_IN_SUMMARY else counts


def lines(plan: Plan) -> list[tuple[Reason, str]]:
    """Decisions in words, errors and launches first; modules of a tenant with the same decision share a line."""
    same: dict[tuple[str, Reason, str], list[str]] = {}
    for (tenant, module), decision in plan.decisions.items():
        same.setdefault((tenant, decision.reason, decision.detail), []).append(module)
    ordered = sorted(same.items(), key=lambda item: item[0][1] not in {Reason.ERROR, Reason.DUE})
    return [
        (reason, f"{tenant}/{','.join(names)}: {reason.value}, {detail}") for (tenant, reason, detail), names in ordered
    ]


def _log(context: dg.SensorEvaluationContext, plan: Plan) -> None:
    counts = ", ".join(f"{count} {reason}" for reason, count in plan.counts().items())
    context.log.info(f"traces until {plan.window_end:%Y-%m-%d %H:%M:%S} UTC: {counts or 'no tenants'}")
    # Errors and launches first, so that the cap never hides them.
    details = lines(plan)
    for reason, text in details[:_DETAILS_SHOWN]:
        (context.log.error if reason is Reason.ERROR else context.log.info)(text)
    if len(details) > _DETAILS_SHOWN:
        context.log.info(f"and {len(details) - _DETAILS_SHOWN} more")
