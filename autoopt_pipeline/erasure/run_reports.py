"""Which of a tenant's runs say something in their reports."""

import html
from collections.abc import Callable, Iterable

import dagster as dg

from autoopt_pipeline.run_history.module_events import EventKind, read_events


def runs_saying(
    instance: dg.DagsterInstance, tenant_id: str, modules: Iterable[str], said: Callable[[str], bool]
) -> list[str]:
    """The runs whose materializations of these modules carry a text for which `said` holds, the newest first."""
    found = [
        event
        for module in modules
        for event in read_events(instance, EventKind.MATERIALIZATION, module, tenants=[tenant_id])
        if any(said(html.unescape(str(value))) for value in event.values.values())
    ]
    found.sort(key=lambda event: event.storage_id, reverse=True)
    return list(dict.fromkeys(event.run_id for event in found))
