"""Sensor that launches one run for each tenant that is due."""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime

import dagster as dg

from autoopt_pipeline.errors import PlanningFailed
from autoopt_pipeline.names import OPTIMIZATION_SENSOR, PARTITIONS_SENSOR
from autoopt_pipeline.orchestration.partitions import registered_tenants
from autoopt_pipeline.orchestration.planner import Plan, PlanOptions, plan_tenants
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.orchestration.run_requests import run_requests
from autoopt_pipeline.orchestration.sensors.partitions import partitions_sensor
from autoopt_pipeline.orchestration.sensors.quality import quality_sensor
from autoopt_pipeline.orchestration.sensors.rollouts import rollout_sensor
from autoopt_pipeline.registry.quality_records import read_falls
from autoopt_pipeline.run_history.ticks import TickReport
from autoopt_pipeline.scheduling.conditions import LAUNCHING, Reason
from autoopt_pipeline.scheduling.fleet_memory import FleetMemory
from autoopt_pipeline.scheduling.turns import QueuePosition
from autoopt_pipeline.secrets import scrubbing_errors
from autoopt_pipeline.settings import Settings

_SECONDS_PER_TICK = 15.0
"""Dagster ends a tick after 60, and Phoenix, which uses one core, needs most of the time for traffic."""

_FEW_TENANTS = 200
"""Up to so many are decided anew in every tick, so that its log explains all of them."""

_DETAILS_SHOWN = 200
_DETAILS_IN_SUMMARY = 20
"""Most lines that a tick logs; 'autoopt status' shows all."""


def build_sensors(settings: Settings, assets: dg.AssetSelection) -> list[dg.SensorDefinition]:
    return [
        partitions_sensor(settings),
        _auto_optimization_sensor(settings, assets),
        rollout_sensor(settings),
        quality_sensor(settings),
    ]


def _auto_optimization_sensor(settings: Settings, assets: dg.AssetSelection) -> dg.SensorDefinition:
    memories: list[FleetMemory] = []

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
        with _borrowed(memories) as memory:
            plan = plan_tenants(
                stored,
                context.instance,
                connections.phoenix,
                now=datetime.now(UTC),
                settings=connections.settings,
                options=PlanOptions(
                    seconds=_SECONDS_PER_TICK, after=after, memory=memory if len(stored) > _FEW_TENANTS else None
                ),
                falls=read_falls(connections.files),
            )
        due = list(plan.due())
        # One request for a partition that does not exist would fail the whole tick.
        registered = registered_tenants(context.instance) if due else set()
        ready = [tenant for tenant in due if tenant in registered]
        launched = ready[: connections.settings.max_launches_per_tick]
        # Phoenix is asked again about tenants that are held back before those that have waited less.
        reached = plan.reached if launched == ready else after
        context.update_cursor(tick_report(plan, reached=reached).model_dump_json())
        _log(context, plan)
        for tenant in due:
            if tenant not in registered:
                context.log.info(f"{tenant}: held back until it is a partition (see {PARTITIONS_SENSOR})")
            elif tenant not in launched:
                context.log.info(f"{tenant}: held back, for a tick launches at most {len(launched)} runs")
        requests = run_requests(plan, launched)
        if requests:
            return dg.SensorResult(run_requests=requests)
        # A missing module is an error of its tenants. If it failed the tick, every tick would fail until somebody acts.
        missing = plan.missing()
        if errors := {key: error for key, error in plan.errors().items() if key not in missing}:
            (tenant, module), first = next(iter(errors.items()))
            raise PlanningFailed(
                f"{len(errors)} of {len(plan.decisions)} could not be decided, first {tenant}/{module}: {first.detail}",
                "'autoopt status' shows the others",
            ) from plan.phoenix_error
        return dg.SkipReason(summary(plan))

    return auto_optimization_sensor


@contextmanager
def _borrowed(memories: list[FleetMemory]) -> Generator[FleetMemory, None, None]:
    """The memory of the last tick, or an empty one: a tick that Dagster has given up may still be using it."""
    memory = memories.pop() if memories else FleetMemory()
    try:
        yield memory
    finally:
        memories[:] = [memory]


def summary(plan: Plan) -> str:
    """Why nothing was launched, in one line: counts by reason, and the decisions themselves if there are few."""
    counts = ", ".join(f"{count} {reason}" for reason, count in plan.counts().items()) or "no tenants"
    details = [text for _, text in lines(plan)]
    return f"{counts} ({'; '.join(details)})" if 0 < len(details) <= _DETAILS_IN_SUMMARY else counts


def lines(plan: Plan) -> list[tuple[Reason, str]]:
    """Decisions in words, errors and launches first; modules of a tenant with the same decision share a line."""
    same: dict[tuple[str, Reason, str], list[str]] = {}
    for (tenant, module), decision in plan.decisions.items():
        same.setdefault((tenant, decision.reason, decision.detail), []).append(module)
    ordered = sorted(same.items(), key=lambda item: item[0][1] not in {Reason.ERROR, *LAUNCHING})
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
    if unchanged := plan.remembered.total():
        context.log.info(f"{unchanged} modules as in earlier ticks; 'autoopt why TENANT MODULE' explains one")


_MISSING_SHOWN = 20


def tick_report(plan: Plan, *, reached: QueuePosition | None) -> TickReport:
    waiting = [d.waiting_since for d in plan.decisions.values() if d.launch and d.waiting_since]
    return TickReport(
        decisions=plan.counts(),
        oldest_due_since=min(waiting, default=None),
        phoenix_asked=plan.phoenix_asked,
        phoenix_error=str(plan.phoenix_error) if plan.phoenix_error else None,
        reached=reached,
        missing=tuple(
            f"{_count_tenants(count)}: {error}"
            for error, count in Counter(plan.decisions[key].detail for key in plan.missing()).most_common(
                _MISSING_SHOWN
            )
        ),
    )


def _count_tenants(count: int) -> str:
    return "1 tenant" if count == 1 else f"{count} tenants"
