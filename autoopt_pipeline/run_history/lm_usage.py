"""What attempts and people have used of language models: reported without an outcome, and read for a day's budget."""

import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import dagster as dg

from autoopt_pipeline.run_history.module_events import EVENT_LOG_LAG, EventKind, ModuleEvent, read_events
from autoopt_pipeline.run_history.outcomes import SPENT
from autoopt_pipeline.run_history.stored_events import events_after
from autoopt_pipeline.scheduling.budgets import LMUsage

_FEW_TENANTS = 1000
"""Up to so many, a query reads only theirs."""


def report_usage(
    instance: dg.DagsterInstance, tenant: str, module: str, usage: LMUsage, *, reason: str, run_id: str | None = None
) -> None:
    """Report what an attempt or a person used without an outcome. The event belongs to no run, so it outlives all."""
    metadata: dict[str, str | int | float] = {"event": SPENT, "reason": reason, **asdict(usage)}
    metadata |= {"run_id": run_id} if run_id else {}
    instance.report_runless_asset_event(dg.AssetObservation(module, partition=tenant, metadata=metadata))


def read_usage(
    instance: dg.DagsterInstance, modules: Collection[str], *, since: datetime, tenants: Collection[str] | None = None
) -> dict[str, LMUsage]:
    """What each tenant, or each of these, has used since a moment, in attempts that have ended.

    It takes two queries per module, and a page of each for every thousand attempts that this process has not read yet.
    """
    if tenants is not None and len(tenants) <= _FEW_TENANTS:
        tally = _Tally(since)
        return tally.read(instance, modules, tenants=sorted(tenants))
    with _tallying:
        tally = _tallies.get(instance.root_directory)
        if tally is None or tally.since != since:
            tally = _tallies[instance.root_directory] = _Tally(since)
        return tally.read(instance, modules)


@dataclass
class _Tally:
    """The usage since a moment, and how far it has been read: the last storage id by module and kind of event."""

    since: datetime
    reached: dict[tuple[str, EventKind], int] = field(default_factory=dict)
    usage: dict[str, LMUsage] = field(default_factory=dict)

    def read(
        self, instance: dg.DagsterInstance, modules: Collection[str], *, tenants: list[str] | None = None
    ) -> dict[str, LMUsage]:
        """Read what is new, and return all usage by tenant."""
        settled = datetime.now(UTC) - EVENT_LOG_LAG
        young: dict[str, LMUsage] = {}
        for module in modules:
            for kind in EventKind:
                place, total = (module, kind), self.usage
                after = self.reached.get(place)
                for event in (
                    events_after(instance, kind, module, since=self.since, after=after or 0)
                    if tenants is None
                    else read_events(instance, kind, module, tenants=tenants, since=self.since, after=after)
                ):
                    if event.at > settled:
                        total = young  # read once more next time, with what may yet appear before it
                    if event.tenant is not None:
                        total[event.tenant] = total.get(event.tenant, LMUsage()) + usage_of(event)
                    if total is self.usage:
                        self.reached[place] = event.storage_id
        return {
            tenant: self.usage.get(tenant, LMUsage()) + young.get(tenant, LMUsage())
            for tenant in self.usage.keys() | young.keys()
        }


_tallies: dict[str, _Tally] = {}
"""By instance. Reading an attempt takes 0.05 ms, and the sensor needs the usage of the day every minute."""

_tallying = threading.Lock()


def usage_of(event: ModuleEvent) -> LMUsage:
    """What an outcome, or an attempt without one, says that it used."""

    def number(name: str) -> float:
        value = event.values.get(name)
        return value if isinstance(value, int | float) else 0

    return LMUsage(int(number("lm_calls")), int(number("lm_tokens")), number("lm_dollars"))
