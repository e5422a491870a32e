"""`autoopt status`: how tenants' modules stand, what would be decided now, and why."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.completion import complete_tenant
from autoopt_pipeline.cli.context import connections, console, instance, no_tenants
from autoopt_pipeline.cli.tables import print_table
from autoopt_pipeline.scheduling.conditions import Reason
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.store import unknown_tenant
from autoopt_pipeline.text import ago, percent

if TYPE_CHECKING:
    from autoopt_pipeline.status.module_status import ModuleStatus

_COLORS = {"due": "green", "error": "red", "backing_off": "red", "in_progress": "cyan"}

# With more tenants than these, only those that need attention are listed, and no more of them.
_TENANTS_SHOWN = 20


def status(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.", autocompletion=complete_tenant)] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON; docs/trigger-and-status.md lists the fields.")
    ] = False,
) -> None:
    """Show each tenant's modules: the decision that the sensor would take now, why, the last verdict, what serves.

    Exit status 2 when a decision is an error.
    """
    from autoopt_pipeline.status.module_status import tenant_standings

    parts = connections()
    stored = dict(parts.configs.current())
    if tenant is not None:
        if tenant not in stored:
            raise unknown_tenant(tenant, stored)
        stored = {tenant: stored[tenant]}
    now = datetime.now(UTC)
    with instance() as opened:
        standings = tenant_standings(stored, opened, parts, now=now, count_all=tenant is not None)
    if json:
        console.print_json(data={"now": now.isoformat(), "modules": [each.as_dict() for each in standings]})
    elif not stored:
        console.print(no_tenants(parts.configs))
    else:
        _print(standings, len(stored), now)
    if any(each.decision.reason is Reason.ERROR for each in standings):
        raise typer.Exit(2)


def _print(standings: Sequence["ModuleStatus"], tenants: int, now: datetime) -> None:
    attention = {each.tenant_id for each in standings if each.needs_attention}
    first = sorted(standings, key=lambda each: each.tenant_id not in attention)
    if tenants <= _TENANTS_SHOWN:
        _print_rows(first, now)
        return
    counts = Counter(each.decision.reason.value for each in standings)
    told = [f"{count} {reason}" for reason, count in sorted(counts.items())]
    if back := sum(each.rolled_back is not None for each in standings):
        told.append(f"{back} rolled back")
    console.print(f"{tenants} tenants: {', '.join(told)}")
    shown = sorted(attention)[:_TENANTS_SHOWN]
    if shown:
        _print_rows([each for each in first if each.tenant_id in shown and each.needs_attention], now)
    else:
        console.print("none of them needs attention")
    if len(attention) > len(shown):
        console.print(f"and {len(attention) - len(shown)} more tenants that need attention")
    console.print("one tenant: 'autoopt status TENANT'; everything: 'autoopt status --json'")


def _print_rows(standings: Sequence["ModuleStatus"], now: datetime) -> None:
    # Modules of which there is the same to say share a row.
    rows: dict[tuple[str, str, str], list[str]] = {}
    for each in standings:
        row = (each.tenant_id, each.decision.reason.value, _told(each, now))
        rows.setdefault(row, []).append(each.module)
    print_table(
        ("tenant", "module", "decision", "why; what happened last; what serves"),
        [
            (escape(tenant), escape(", ".join(modules)), _colored(reason), told)
            for (tenant, reason, told), modules in rows.items()
        ],
    )


def _colored(reason: str) -> str:
    color = _COLORS.get(reason)
    return f"[{color}]{reason}[/]" if color else reason


def _told(standing: "ModuleStatus", now: datetime) -> str:
    lines = [escape(standing.decision.detail)]
    if standing.progress:
        lines.append(escape(standing.progress.describe(now)))
    evidence, need = standing.decision.evidence, standing.decision.need
    if evidence and need and standing.decision.reason not in {Reason.TOO_FEW_TRACES, Reason.DUE}:
        lines.append(f"{evidence.total} of {need} new traces and annotations")
    if standing.last_at:
        lines.append(f"last {escape(standing.verdict or 'by hand')}, {ago(standing.last_at, now)}")
    if standing.active:
        lines.append(f"serves {standing.active}, {percent(standing.active_score)} %")
    elif standing.last_at and standing.error is None:
        lines.append(f"serves {BASELINE}")
    if back := standing.rolled_back:
        lines.append(f"rolled back {ago(back.at, now)} by {escape(back.actor)}: {escape(', '.join(back.versions))}")
    if standing.error:
        lines.append(f"[red]{escape(standing.error)}[/]")
    return "\n".join([lines[0], *(f"[dim]{line}[/]" for line in lines[1:])])
