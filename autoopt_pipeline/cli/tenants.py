"""`autoopt tenants`: which tenants there are."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from autoopt_pipeline.cli.completion import complete_tenant
from autoopt_pipeline.cli.context import connections, console, dagster_home, instance
from autoopt_pipeline.errors import AutooptError, ConfigConflict, InvalidConfig
from autoopt_pipeline.tenants.config import parse_config
from autoopt_pipeline.tenants.seed_import import read_rows
from autoopt_pipeline.tenants.store import newest_version, write_config

app = typer.Typer(help="Add, list, remove and import tenants.", no_args_is_help=True)

TenantId = Annotated[str, typer.Argument(help="Tenant id: 'acme' or 'org:tenant'.", autocompletion=complete_tenant)]


@app.command()
def add(
    tenant: TenantId,
    agent: Annotated[
        list[str] | None,
        typer.Option(help="An agent that routing chooses from: NAME or NAME=WHAT IT IS FOR."),
    ] = None,
) -> None:
    """Give a new tenant a configuration, and make it a partition at once."""
    agents = [dict(zip(("name", "description"), each.split("=", 1), strict=False)) for each in agent or []]
    config = parse_config({"tenant_id": tenant, "agents": agents}, where="tenants add")
    store = connections().configs
    if tenant in store.current():
        raise ConfigConflict(f"tenant {tenant} exists already", f"change it with 'autoopt config set {tenant} ...'")
    with _partitions() as register:
        version = write_config(store, config)
        register(tenant)
    console.print(f"{tenant} added, configuration version {version}")


@app.command("list")
def list_tenants() -> None:
    """List the tenants that have a configuration."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("tenant", no_wrap=True)
    for column in ("enabled", "interval", "min new", "modules", "agents", "version"):
        table.add_column(column, overflow="fold")
    for tenant, entry in sorted(connections().configs.current().items()):
        try:
            config = entry.parse()
        except AutooptError as e:
            table.add_row(escape(tenant), f"[red]{escape(str(e))}[/red]", "", "", "", "", str(entry.version))
            continue
        table.add_row(
            escape(tenant),
            "yes" if config.enable_auto_optimization else "no",
            f"{config.optimization_interval_seconds} s",
            str(config.min_samples_for_optimization),
            escape(", ".join(config.modules)),
            str(len(config.agents)),
            str(entry.version),
        )
    console.print(table)


@app.command()
def remove(tenant: TenantId) -> None:
    """Remove a tenant. Its programs, its history and its traces stay."""
    store = connections().configs
    newest = newest_version(store, tenant)
    store.write(tenant, None, expected_version=newest.version)
    if dagster_home():
        from autoopt_pipeline.modules.registry import module_names
        from autoopt_pipeline.orchestration.partitions import registered_tenants, unfinished_runs

        with instance() as opened:
            if tenant in unfinished_runs(opened, module_names()):
                console.print("a run is under way: the sensor removes the partition when it has ended")
            elif tenant in registered_tenants(opened):
                opened.delete_dynamic_partition("tenants", tenant)
    console.print(f"{tenant} removed; programs and history are kept")


@app.command("import")
def import_tenants(
    file: Annotated[
        Path, typer.Argument(help="JSON array, or JSON lines: configurations, or rows of the seed's store.")
    ],
) -> None:
    """Import configurations, and say which of their fields mean nothing here."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidConfig(f"{file}: {e}", "give a readable file") from None
    imported, refused = read_rows(text, where=str(file))
    if not imported and not refused:
        raise InvalidConfig(f"{file} has no rows", "give configurations as JSON, or one a line")
    store = connections().configs
    with _partitions() as register:
        for one in imported:
            version = write_config(store, one.config)
            register(one.config.tenant_id)
            ignored = f"; ignored: {', '.join(one.ignored)}" if one.ignored else ""
            console.print(f"{one.config.tenant_id} imported, configuration version {version}{ignored}")
    for row in refused:
        console.print(f"[red]refused[/red] {escape(row.reason)}")
    if refused:
        raise InvalidConfig(
            f"{file}: {len(refused)} of {len(refused) + len(imported)} rows were refused",
            "correct them and import again; the others are saved",
        )


@contextmanager
def _partitions() -> Generator[Callable[[str], None], None, None]:
    """A function that makes a tenant a partition. Opens the instance first, so nothing is written when it fails."""
    if dagster_home() is None:
        yield lambda tenant: console.print(f"no Dagster instance here: the sensor will make {tenant} a partition")
        return
    from autoopt_pipeline.orchestration.partitions import register_tenant

    with instance() as opened:
        yield lambda tenant: register_tenant(opened, tenant)
