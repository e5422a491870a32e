"""`autoopt tenants`: adds, lists, removes, imports and exports tenants."""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from autoopt_pipeline.cli.completion import complete_tenant
from autoopt_pipeline.cli.confirmation import Yes, ask
from autoopt_pipeline.cli.context import console, current_user, dagster_home, instance, no_tenants, open_connections
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.cli.output import print_changes
from autoopt_pipeline.cli.tables import print_table
from autoopt_pipeline.durations import as_duration
from autoopt_pipeline.errors import AutooptError, InvalidConfig, InvalidExport
from autoopt_pipeline.tenants.diff import changed_fields, in_effect
from autoopt_pipeline.tenants.export import export_rows
from autoopt_pipeline.tenants.lifecycle import add_tenant, kept_after_removal, new_tenant
from autoopt_pipeline.tenants.seed_import import ImportedConfig, read_rows
from autoopt_pipeline.tenants.store import newest_version, write_config
from autoopt_pipeline.tenants.stores.base import StoredConfig, TenantConfigStore

app = typer.Typer(help="Add, list, remove, import and export tenants.", no_args_is_help=True)

TenantId = Annotated[str, typer.Argument(help="Tenant id: 'acme' or 'org:tenant'.", autocompletion=complete_tenant)]


@app.command()
def add(
    tenant: TenantId,
    agent: Annotated[
        list[str] | None,
        typer.Option(help="An agent that routing chooses from: NAME or NAME=PURPOSE."),
    ] = None,
) -> None:
    """Add a tenant with a configuration and a Dagster partition."""
    config = new_tenant(tenant, agent or [], where="tenants add")
    with partitions() as register:
        version = add_tenant(open_connections().configs, config, actor=current_user())
        register(tenant)
    console.print(f"{tenant} added, configuration version {version}")


@app.command("list")
def list_tenants(json: Json = False) -> None:
    """List the tenants that have a configuration."""
    store = open_connections().configs
    listed = sorted(store.current().items())
    if json:
        console.print_json(data={"tenants": [_as_dict(entry) for _, entry in listed]})
        return
    if not listed:
        console.print(no_tenants(store))
        return
    rows, errors = [], []
    for tenant, entry in listed:
        try:
            config = entry.parse()
        except AutooptError as e:
            rows.append((escape(tenant), "[red]not valid[/red]", "", "", "", "", str(entry.version)))
            errors.append(e)
            continue
        rows.append(
            (
                escape(tenant),
                "yes" if config.enable_auto_optimization else "no",
                as_duration(config.optimization_interval_seconds),
                str(config.min_samples_for_optimization),
                escape(", ".join(config.modules)),
                str(len(config.agents)),
                str(entry.version),
            )
        )
    print_table(("tenant", "enabled", "interval", "min new", "modules", "agents", "version"), rows)
    for error in errors:
        console.print(f"[red]not valid[/red] {escape(str(error))}")


def _as_dict(entry: StoredConfig) -> dict[str, Any]:
    """A tenant for scripts: its configuration including defaults, or its error."""
    fields = {"tenant": entry.tenant_id, "version": entry.version, "written_at": entry.written_at.isoformat()}
    try:
        return {**fields, "config": entry.parse().model_dump(mode="json"), "error": None}
    except AutooptError as e:
        return {**fields, "config": None, "error": str(e)}


@app.command()
def remove(tenant: TenantId, yes: Annotated[bool, Yes] = False) -> None:
    """Remove a tenant, which ends its optimization. Its programs, its history and its traces stay.

    Asks for confirmation; without a terminal, --yes is required.
    """
    store = open_connections().configs
    newest = newest_version(store, tenant)
    ask(f"Remove {tenant}, whose programs continue to serve without further optimization", yes=yes)
    store.write(tenant, None, actor=current_user(), expected_version=newest.version)
    if dagster_home():
        from autoopt_pipeline.orchestration.partitions import withdraw_tenant

        with instance() as opened:
            if not withdraw_tenant(opened, tenant):
                console.print("a run is active: the sensor removes the partition after it")
    console.print(f"{tenant} removed. What stays:")
    for line in kept_after_removal(newest):
        console.print(f"- {line}")


@app.command("import")
def import_tenants(
    file: Annotated[
        Path,
        typer.Argument(help="JSON array, or JSON lines: configurations, or rows of the seed's store."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the changes, and write nothing.")] = False,
) -> None:
    """Import configurations, and print which of their fields are ignored."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidConfig(f"{file}: {e}", "give a readable file") from None
    store = open_connections().configs
    imported, refused = read_rows(text, store.current(), where=str(file))
    if not imported and not refused:
        raise InvalidConfig(f"{file} has no rows", "give configurations as JSON, or one a line")
    if dry_run:
        _print_import_plan(store, imported)
    else:
        with partitions() as register:
            for entry in imported:
                version = write_config(store, entry.config, actor=f"import by {current_user()}")
                register(entry.config.tenant_id)
                console.print(f"{entry.config.tenant_id} imported, configuration version {version}{_ignored(entry)}")
    for row in refused:
        console.print(f"[red]refused[/red] {escape(row.reason)}")
    if refused:
        others = "would be saved" if dry_run else "are saved"
        raise InvalidConfig(
            f"{file}: {len(refused)} of {len(refused) + len(imported)} rows were refused",
            f"correct them and import again; the others {others}",
        )


@app.command("export")
def export_tenants(
    file: Annotated[Path | None, typer.Argument(help="A new file [default: stdout].")] = None,
) -> None:
    """Write all configurations as JSON lines, which 'autoopt tenants import' reads."""
    store = open_connections().configs
    entries = [entry for _, entry in sorted(store.current().items())]
    lines, broken = export_rows(entries)
    text = "".join(f"{line}\n" for line in lines)
    if file is None:
        sys.stdout.write(text)
    else:
        try:
            with file.open("x", encoding="utf-8") as out:
                out.write(text)
        except OSError as e:
            raise InvalidExport(f"{file}: {e.strerror}", "name a new file in a folder that you may write to") from None
        console.print(f"{len(lines)} configurations exported to {file}", markup=False)
    if not entries:
        print(no_tenants(store), file=sys.stderr)  # stdout is for exported configurations only
    if broken:
        raise InvalidConfig(
            f"{len(broken)} of {len(entries)} configurations are not valid and were left out, first: {broken[0]}",
            "correct them with 'autoopt config edit TENANT', and export again",
        )


def _print_import_plan(store: TenantConfigStore, imported: Sequence[ImportedConfig]) -> None:
    current = store.current()
    for entry in imported:
        tenant = entry.config.tenant_id
        if tenant not in current:
            console.print(f"{tenant} would be added{_ignored(entry)}")
            continue
        changes = changed_fields(in_effect(current[tenant]), entry.config.model_dump(mode="json"))
        console.print(f"{tenant} would be saved, with {len(changes)} fields changed{_ignored(entry)}")
        print_changes(changes)


def _ignored(entry: ImportedConfig) -> str:
    return escape(f"; ignored: {', '.join(entry.ignored)}") if entry.ignored else ""


@contextmanager
def partitions() -> Generator[Callable[[str], None], None, None]:
    """Yield a function that adds a tenant's partition. The instance opens first: if it fails, nothing is written."""
    if dagster_home() is None:
        yield lambda tenant: console.print(f"no Dagster instance here: the sensor will add the partition of {tenant}")
        return
    from autoopt_pipeline.orchestration.partitions import register_tenant

    with instance() as opened:
        yield lambda tenant: register_tenant(opened, tenant)
