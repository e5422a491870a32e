"""What the commands on a tenant's program versions have in common."""

from typing import Annotated

import typer

from autoopt_pipeline.cli.completion import complete_module
from autoopt_pipeline.cli.context import connections
from autoopt_pipeline.registry.module_versions import ModuleVersions, read_programs
from autoopt_pipeline.tenants.store import unknown_tenant

ModuleName = Annotated[str, typer.Argument(help="Module, e.g. routing.", autocompletion=complete_module)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Full = Annotated[bool, typer.Option("--full", help="Cut nothing short.")]


def open_programs(tenant: str, module: str) -> ModuleVersions:
    """What is stored of a tenant's module. Raises `UnknownTenant` or `UnknownModule`, naming the nearest."""
    parts = connections()
    programs = read_programs(parts.files, tenant, module)
    if not programs.exist and tenant not in (known := parts.configs.current()):
        raise unknown_tenant(tenant, known)
    return programs
