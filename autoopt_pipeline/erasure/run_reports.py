"""Finds the runs of a tenant whose reports contain a text."""

import html
from collections.abc import Callable, Iterable

import dagster as dg

from autoopt_pipeline.run_history.module_events import EventKind, read_events


def runs_reporting(
    instance: dg.DagsterInstance, tenant_id: str, modules: Iterable[str], matches: Callable[[str], bool]
) -> list[str]:
    """The runs, newest first, whose materializations of these modules have a value for which `matches` is true."""
    events = [
        event
        for module in modules
        for event in read_events(instance, EventKind.MATERIALIZATION, module, tenants=[tenant_id])
        if any(matches(html.unescape(str(value))) for value in event.values.values())
    ]
    events.sort(key=lambda event: event.storage_id, reverse=True)
    return list(dict.fromkeys(event.run_id for event in events))
