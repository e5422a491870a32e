"""`autoopt status`: shows the status of tenants' modules, and the sensor's decisions."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.completion import complete_tenant
from autoopt_pipeline.cli.context import console, instance, no_tenants, open_connections
from autoopt_pipeline.cli.tables import print_table
from autoopt_pipeline.scheduling.conditions import Reason
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.store import newest_version
from autoopt_pipeline.text import ago, percent

if TYPE_CHECKING:
    from autoopt_pipeline.status.module_status import ModuleStatus

_COLORS = {"due": "green", "quality_fell": "yellow", "error": "red", "backing_off": "red", "in_progress": "cyan"}

# With more tenants, the command lists only those that need attention, and at most this many.
_TENANTS_SHOWN = 20


def status(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.", autocompletion=complete_tenant)] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON; docs/trigger-and-status.md lists the fields.")
    ] = False,
) -> None:
    """Show each tenant's modules: the sensor's current decision, its reason, the last verdict, the active version.

    Exit status 2 if a decision is an error.
    """
    from autoopt_pipeline.status.module_status import tenant_standings

    connections = open_connections()
    configs = connections.configs
    stored = configs.current() if tenant is None else {tenant: newest_version(configs, tenant)}
    now = datetime.now(UTC)
    with instance() as opened:
        standings = tenant_standings(stored, opened, connections, now=now, count_all=tenant is not None)
    if json:
        console.print_json(data={"now": now.isoformat(), "modules": [standing.as_dict() for standing in standings]})
    elif not stored:
        console.print(no_tenants(configs))
    else:
        _print(standings, len(stored), now)
    if any(standing.decision.reason is Reason.ERROR for standing in standings):
        raise typer.Exit(2)


def _print(standings: Sequence["ModuleStatus"], tenants: int, now: datetime) -> None:
    attention = {standing.tenant_id for standing in standings if standing.needs_attention}
    first = sorted(standings, key=lambda standing: standing.tenant_id not in attention)
    if tenants <= _TENANTS_SHOWN:
        _print_rows(first, now)
        return
    counts = Counter(standing.decision.reason.value for standing in standings)
    texts = [f"{count} {reason}" for reason, count in sorted(counts.items())]
    if back := sum(standing.rolled_back is not None for standing in standings):
        texts.append(f"{back} rolled back")
    console.print(f"{tenants} tenants: {', '.join(texts)}")
    shown = sorted(attention)[:_TENANTS_SHOWN]
    if shown:
        _print_rows([row for row in first if row.tenant_id in shown and row.needs_attention], now)
    else:
        console.print("no tenant needs attention")
    if len(attention) > len(shown):
        console.print(f"and {len(attention) - len(shown)} more tenants that need attention")
    console.print("one tenant: 'autoopt status TENANT'; everything: 'autoopt status --json'")


def _print_rows(standings: Sequence["ModuleStatus"], now: datetime) -> None:
    # Modules with the same texts share a row.
    rows: dict[tuple[str, str, str], list[str]] = {}
    for standing in standings:
        row = (standing.tenant_id, standing.decision.reason.value, _describe(standing, now))
        rows.setdefault(row, []).append(standing.module)
    print_table(
        ("tenant", "module", "decision", "reason; last outcome; active version"),
        [
            (escape(tenant), escape(", ".join(modules)), _colored(reason), text)
            for (tenant, reason, text), modules in rows.items()
        ],
    )


def _colored(reason: str) -> str:
    color = _COLORS.get(reason)
    return f"[{color}]{reason}[/]" if color else reason


_SAYS_HOW_MANY = {Reason.TOO_FEW_TRACES, Reason.AWAITING_REVIEWS, Reason.DUE, Reason.QUALITY_FELL}
"""Reasons whose detail has the number of new traces or reviews."""


def _describe(standing: "ModuleStatus", now: datetime) -> str:
    from autoopt_pipeline.status.explain import describe_rollout_reviews

    lines = [escape(standing.decision.detail)]
    if standing.progress:
        lines.append(escape(standing.progress.describe(now)))
    decision = standing.decision
    if decision.evidence and decision.need and decision.reason not in _SAYS_HOW_MANY:
        lines.append(f"{decision.counted} of {decision.need} {decision.needed}")
    if standing.last_at:
        lines.append(f"last {escape(standing.verdict or 'by hand')}, {ago(standing.last_at, now)}")
    if standing.active:
        lines.append(f"serves {standing.active}, {percent(standing.active_score)} %")
    elif standing.last_at and standing.error is None:
        lines.append(f"serves {BASELINE}")
    if back := standing.rolled_back:
        lines.append(f"rolled back {ago(back.at, now)} by {escape(back.actor)}: {escape(', '.join(back.versions))}")
    if standing.fall and standing.decision.reason is not Reason.QUALITY_FELL:
        lines.append(escape(str(standing.fall)))
    if standing.rollout_reviews:
        lines.append(escape(describe_rollout_reviews(standing)))
    if standing.error:
        lines.append(f"[red]{escape(standing.error)}[/]")
    return "\n".join([lines[0], *(f"[dim]{line}[/]" for line in lines[1:])])
