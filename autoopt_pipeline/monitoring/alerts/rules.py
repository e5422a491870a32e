"""From events to alerts. Pure: what has been told and what happened go in, and come out with what is to be told."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from autoopt_pipeline.monitoring.alerts.failure_rules import Failures, tell_failures
from autoopt_pipeline.monitoring.alerts.models import Affected, Alert, Kind, beginning_of, make_alert
from autoopt_pipeline.monitoring.alerts.outage_rules import Outages, tell_outages
from autoopt_pipeline.run_history.events import Event, ModuleFailed, ModuleSucceeded, RolledBack, Ticked


class Memory(BaseModel):
    """What has been told, and what may have to be."""

    model_config = ConfigDict(frozen=True)

    failures: Failures = Failures()
    outages: Outages = {}


def tell(memory: Memory, events: Sequence[Event], *, now: datetime, after: int) -> tuple[Memory, list[Alert]]:
    """Take events in the order of their time. `after` failures, or lost looks of a sensor, in a row are told."""
    ordered = sorted(events, key=lambda event: event.at)
    outages, about_services = tell_outages(
        memory.outages, [event for event in ordered if isinstance(event, Ticked)], now=now, after=after
    )
    failures, about_failures = tell_failures(
        memory.failures,
        [event for event in ordered if isinstance(event, ModuleFailed | ModuleSucceeded)],
        now=now,
        after=after,
    )
    back = _tell_rollbacks([event for event in ordered if isinstance(event, RolledBack)], now)
    return Memory(failures=failures, outages=outages), [*about_services, *back, *about_failures]


def _tell_rollbacks(events: Sequence[RolledBack], now: datetime) -> list[Alert]:
    """One message per module: a language model that got worse moves many tenants back at once."""
    by_module: dict[str, list[Affected]] = {}
    for event in events:
        back = Affected(tenant=event.tenant, module=event.module, detail=beginning_of(event.detail), url=event.url)
        by_module.setdefault(event.module, []).append(back)
    return [
        make_alert(
            Kind.ROLLED_BACK,
            now,
            f"{module} of {back[0].tenant}" + (f" and {len(back) - 1} more" if back[1:] else "") + " was rolled back",
            detail=back[0].detail,
            affected=back,
        )
        for module, back in by_module.items()
    ]
