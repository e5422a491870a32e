"""`autoopt status`: what would be decided now, and why."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from autoopt_pipeline.cli.context import connections, console, instance
from autoopt_pipeline.errors import UnknownTenant

_COLORS = {"due": "green", "error": "red", "backing_off": "red", "in_progress": "cyan"}


def status(tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None) -> None:
    """Show each tenant's modules with the decision that the sensor would take now."""
    from autoopt_pipeline.orchestration.planning import plan_tenants

    parts = connections()
    stored = dict(parts.configs.current())
    if tenant is not None:
        if tenant not in stored:
            raise UnknownTenant(f"tenant {tenant} has no configuration", "list them with 'autoopt tenants list'")
        stored = {tenant: stored[tenant]}
    with instance() as opened:
        plan = plan_tenants(
            stored,
            opened,
            parts.phoenix,
            now=datetime.now(UTC),
            settling=timedelta(seconds=parts.settings.settling_seconds),
        )
    table = Table("tenant", "module", "decision", "why")
    for (whose, module), decision in plan.decisions.items():
        reason = decision.reason.value
        color = _COLORS.get(reason)
        table.add_row(
            escape(whose), escape(module), f"[{color}]{reason}[/]" if color else reason, escape(decision.detail)
        )
    console.print(table)
