"""Which of a tenant's runs say something in their reports."""

import html
from collections.abc import Callable, Iterable

import dagster as dg

from autoopt_pipeline.run_history.outcomes import metadata_values

_PAGE = 200


def runs_saying(
    instance: dg.DagsterInstance, tenant_id: str, modules: Iterable[str], said: Callable[[str], bool]
) -> list[str]:
    """The runs, newest first, whose materializations of these modules carry a text for which `said` holds."""
    found: dict[str, None] = {}
    for module in modules:
        wanted = dg.AssetRecordsFilter(dg.AssetKey(module), asset_partitions=[tenant_id])
        cursor = None
        while True:
            page = instance.fetch_materializations(wanted, limit=_PAGE, cursor=cursor)
            for record in page.records:
                values = metadata_values(record.asset_materialization).values()
                if any(said(html.unescape(str(value))) for value in values):
                    found[record.run_id] = None
            cursor = page.cursor
            if not page.has_more:
                break
    return list(found)
