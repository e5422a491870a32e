"""`autoopt why`: explains the status of one module in sentences."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console, instance, open_connections
from autoopt_pipeline.cli.options import ModuleName
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.scheduling.conditions import Reason
from autoopt_pipeline.tenants.store import newest_version


def why(
    tenant: TenantId,
    module: ModuleName,
    json: Annotated[
        bool, typer.Option("--json", help="Print the facts as JSON; docs/trigger-and-status.md lists them.")
    ] = False,
) -> None:
    """Explain why a module is or is not optimized: its configuration, history, active version and next run.

    Exit status 2 if the decision is an error.
    """
    from autoopt_pipeline.status.explain import sentences
    from autoopt_pipeline.status.module_detail import module_stories

    connections = open_connections()
    stored = newest_version(connections.configs, tenant)
    now = datetime.now(UTC)
    with instance() as opened:
        (story,) = module_stories(stored, [module], opened, connections, now=now)
    if json:
        console.print_json(data={"now": now.isoformat(), **story.as_dict()})
    else:
        console.print(f"[bold]{escape(tenant)}/{escape(module)}[/]")
        for title, text in sentences(story, now):
            console.print(f"[dim]{title:>11}[/]  {escape(text)}")
    if story.standing.decision.reason is Reason.ERROR:
        raise typer.Exit(2)
