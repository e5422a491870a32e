"""`autoopt config`: a tenant's configuration and its versions."""

import json
from typing import Annotated

import typer
from rich.table import Table

from autoopt_pipeline.cli.context import connections, console, unknown_tenant
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.errors import InvalidConfig, UnknownTenant
from autoopt_pipeline.tenants.config import check_modules, with_field
from autoopt_pipeline.tenants.store import read_config, write_config

app = typer.Typer(help="Read and change the configuration of a tenant.", no_args_is_help=True)


@app.command()
def get(tenant: TenantId, version: Annotated[int | None, typer.Option(help="An earlier version.")] = None) -> None:
    """Print a configuration as JSON."""
    store = connections().configs
    if version is None:
        config, _ = read_config(store, tenant)
        console.print_json(config.model_dump_json())
        return
    for entry in store.history(tenant):
        if entry.version == version and entry.document is not None:
            console.print_json(json.dumps(entry.document))
            return
    raise UnknownTenant(f"tenant {tenant} has no configuration version {version}", "see 'autoopt config history'")


@app.command("set")
def set_fields(
    tenant: TenantId,
    changes: Annotated[list[str], typer.Argument(help="FIELD=VALUE, e.g. budget.max_lm_calls=2000; values are JSON.")],
) -> None:
    """Change fields; the others stay as they are."""
    store = connections().configs
    config, version = read_config(store, tenant)
    for change in changes:
        path, separator, value = change.partition("=")
        if not separator:
            raise InvalidConfig(f"{change[:60]!r} is no FIELD=VALUE", "e.g. enable_auto_optimization=false")
        config = with_field(config, path.strip(), value)
    check_modules(config)
    written = write_config(store, config, expected_version=version)
    console.print(f"{tenant}: configuration version {written}")


@app.command()
def history(tenant: TenantId) -> None:
    """List all versions of a configuration."""
    table = Table("version", "written (UTC)", "state")
    store = connections().configs
    versions = store.history(tenant)
    if not versions:
        raise unknown_tenant(tenant, store.current())
    for entry in versions:
        state = "removed" if entry.document is None else "saved"
        table.add_row(str(entry.version), f"{entry.written_at:%Y-%m-%d %H:%M:%S}", state)
    console.print(table)
