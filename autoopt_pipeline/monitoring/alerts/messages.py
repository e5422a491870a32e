"""The text of alerts: one message for many tenants, outages, rollbacks or falls in quality."""

import re
from collections.abc import Sequence
from datetime import datetime

from autoopt_pipeline.monitoring.alerts.models import Affected, Alert, Kind, beginning_of, make_alert
from autoopt_pipeline.run_history.module_failures import ModuleFailure
from autoopt_pipeline.run_history.ticks import Outage


def failure_alert(kind: Kind, failures: Sequence[ModuleFailure], *, ui_url: str | None, newest_only: bool) -> Alert:
    """Failed modules, each once, by cause: the most frequent one first."""
    newest = {(failure.tenant, failure.module): failure for failure in failures}
    by_cause: dict[str, list[ModuleFailure]] = {}
    for failure in newest.values():
        by_cause.setdefault(_cause_of_all(failure), []).append(failure)
    groups = sorted(by_cause.values(), key=lambda group: -len(group))
    # One module of each cause comes first, because not all are listed.
    listed = [group[0] for group in groups] + [failure for group in groups for failure in group[1:]]
    detail = f"{len(groups)} causes, mostly: {listed[0].cause}" if groups[1:] else listed[0].cause
    if newest_only:
        detail = f"too many runs failed to count them all, so only the newest are in here; {detail}"
    fails = "failed" if kind is Kind.RUN_FAILED else "failed repeatedly"
    affected = [_affected(failure, kind, ui_url) for failure in listed]
    return make_alert(kind, failures[-1].at, f"{_named(affected)} {fails}", detail=detail, affected=affected)


def _affected(failure: ModuleFailure, kind: Kind, ui_url: str | None) -> Affected:
    detail = failure.cause
    if failure.number is None:
        detail += " (it has had an outcome since)"
    elif kind is Kind.FAILING_REPEATEDLY:
        detail = f"{failure.number} in a row: {detail}"
    return Affected(
        tenant=failure.tenant,
        module=failure.module,
        detail=beginning_of(detail),
        run_id=failure.run_id,
        url=page(ui_url, f"runs/{failure.run_id}"),
    )


def _cause_of_all(failure: ModuleFailure) -> str:
    """The cause without tenant, module, ids, times and counts, in which the causes of others differ."""
    names = rf"(?<!\w)(?:{re.escape(failure.tenant)}|{re.escape(failure.module)})(?!\w)"
    return re.sub(rf"{names}|\b[0-9a-f]{{8,}}\b|\d+", "#", failure.cause)


def rollback_alert(rolled_back: Sequence[Affected], at: datetime) -> Alert:
    summary = f"{_named(rolled_back)} {'were' if rolled_back[1:] else 'was'} rolled back"
    return make_alert(Kind.ROLLED_BACK, at, summary, detail=rolled_back[0].detail, affected=rolled_back)


def quality_alert(fell: Sequence[Affected], at: datetime) -> Alert:
    summary = f"{_named(fell)} {'do' if fell[1:] else 'does'} worse than before"
    return make_alert(Kind.QUALITY_FELL, at, summary, detail=fell[0].detail, affected=fell)


def outage_alert(outages: Sequence[Outage], ticks: int) -> Alert:
    """Outages of so many ticks, the newest first."""
    newest = outages[::-1]
    summaries = [
        f"{outage.subject} failed {ticks} ticks in a row, since {outage.since:%Y-%m-%d %H:%M:%S} UTC"
        + (", and works again" if outage.over else "")
        for outage in newest
    ]
    detail = "; ".join(dict.fromkeys(outage.cause for outage in newest))
    return make_alert(Kind.UNREACHABLE, newest[0].at, "; ".join(summaries), detail=detail)


def page(ui_url: str | None, path: str) -> str | None:
    """An address in the Dagster UI, where that is known."""
    return f"{ui_url.rstrip('/')}/{path}" if ui_url else None


def _named(affected: Sequence[Affected]) -> str:
    """`acme/routing`, or `acme/routing and 4 more`."""
    first = f"{affected[0].tenant}/{affected[0].module}"
    return f"{first} and {len(affected) - 1} more" if affected[1:] else first
