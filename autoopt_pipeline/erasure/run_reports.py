"""Finds the runs of a tenant whose reports contain a text."""

import html
from collections.abc import Callable, Iterable

import dagster as dg

from autoopt_pipeline.run_history.outcomes import metadata_values

_PAGE = 200


def runs_reporting(
    instance: dg.DagsterInstance, tenant_id: str, modules: Iterable[str], matches: Callable[[str], bool]
) -> list[str]:
    """The runs, newest first, whose materializations of these modules have a value for which `matches` is true."""
    runs: dict[str, None] = {}
    for module in modules:
        wanted = dg.AssetRecordsFilter(dg.AssetKey(module), asset_partitions=[tenant_id])
        cursor = None
        while True:
            page = instance.fetch_materializations(wanted, limit=_PAGE, cursor=cursor)
            for record in page.records:
                values = metadata_values(record.asset_materialization).values()
                if any(matches(html.unescape(str(value))) for value in values):
                    runs[record.run_id] = None
            cursor = page.cursor
            if not page.has_more:
                break
    return list(runs)
