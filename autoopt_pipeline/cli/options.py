"""Options and helpers that several commands share."""

from typing import Annotated

import typer

from autoopt_pipeline.cli.completion import complete_module
from autoopt_pipeline.cli.context import open_connections
from autoopt_pipeline.registry.module_versions import ModuleVersions, read_programs
from autoopt_pipeline.tenants.store import unknown_tenant

ModuleName = Annotated[str, typer.Argument(help="Module, e.g. routing.", autocompletion=complete_module)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Full = Annotated[bool, typer.Option("--full", help="Print texts in full.")]


def open_programs(tenant: str, module: str) -> ModuleVersions:
    """Open the stored versions of a tenant's module. Raises `UnknownTenant` or `UnknownModule`, with a suggestion."""
    connections = open_connections()
    programs = read_programs(connections.files, tenant, module)
    if not programs.exist and tenant not in (known := connections.configs.current()):
        raise unknown_tenant(tenant, known)
    return programs
