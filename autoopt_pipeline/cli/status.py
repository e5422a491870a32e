"""`autoopt status`: what would be decided now, and why."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from autoopt_pipeline.cli.context import connections, console, instance, unknown_tenant

_COLORS = {"due": "green", "error": "red", "backing_off": "red", "in_progress": "cyan"}


def status(tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None) -> None:
    """Show each tenant's modules: the decision that the sensor would take now, why, and the last verdict.

    Exit status 2 when a decision is an error.
    """
    from autoopt_pipeline.orchestration.history import read_outcomes
    from autoopt_pipeline.orchestration.planning import plan_tenants

    parts = connections()
    stored = dict(parts.configs.current())
    if tenant is not None:
        if tenant not in stored:
            raise unknown_tenant(tenant, stored)
        stored = {tenant: stored[tenant]}
    with instance() as opened:
        plan = plan_tenants(
            stored,
            opened,
            parts.phoenix,
            now=datetime.now(UTC),
            settings=parts.settings,
        )
        attempts = {key: plan.attempts[key] for key in plan.decisions if key in plan.attempts}
        outcomes = read_outcomes(opened, attempts)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("tenant", "module", "decision", "last verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("why", overflow="fold")
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for (tenant_id, module), decision in plan.decisions.items():
        outcome = outcomes.get((tenant_id, module))
        row = (tenant_id, decision.reason.value, outcome.verdict if outcome else "", decision.detail)
        rows.setdefault(row, []).append(module)
    # Modules of which there is the same to say share a row.
    for (tenant_id, reason, verdict, detail), modules in rows.items():
        color = _COLORS.get(reason)
        table.add_row(
            escape(tenant_id),
            escape(", ".join(modules)),
            f"[{color}]{reason}[/]" if color else reason,
            escape(verdict),
            escape(detail),
        )
    console.print(table)
    if plan.errors():
        raise typer.Exit(2)
