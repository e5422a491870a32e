"""`autoopt tenants`: which tenants there are."""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from autoopt_pipeline.cli.completion import complete_tenant
from autoopt_pipeline.cli.confirmation import Yes, ask
from autoopt_pipeline.cli.context import connections, console, dagster_home, instance, no_tenants, who
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
        typer.Option(help="An agent that routing chooses from: NAME or NAME=WHAT IT IS FOR."),
    ] = None,
) -> None:
    """Give a new tenant a configuration, and make it a partition at once."""
    config = new_tenant(tenant, agent or [], where="tenants add")
    with partitions() as register:
        version = add_tenant(connections().configs, config, actor=who())
        register(tenant)
    console.print(f"{tenant} added, configuration version {version}")


@app.command("list")
def list_tenants(json: Json = False) -> None:
    """List the tenants that have a configuration."""
    store = connections().configs
    listed = sorted(store.current().items())
    if json:
        console.print_json(data={"tenants": [_as_dict(entry) for _, entry in listed]})
        return
    if not listed:
        console.print(no_tenants(store))
        return
    rows, wrong = [], []
    for tenant, entry in listed:
        try:
            config = entry.parse()
        except AutooptError as e:
            rows.append((escape(tenant), "[red]not valid[/red]", "", "", "", "", str(entry.version)))
            wrong.append(e)
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
    for error in wrong:
        console.print(f"[red]not valid[/red] {escape(str(error))}")


def _as_dict(entry: StoredConfig) -> dict[str, Any]:
    """A tenant for programs: the configuration with its defaults, or what is wrong with it."""
    told = {"tenant": entry.tenant_id, "version": entry.version, "written_at": entry.written_at.isoformat()}
    try:
        return {**told, "config": entry.parse().model_dump(mode="json"), "error": None}
    except AutooptError as e:
        return {**told, "config": None, "error": str(e)}


@app.command()
def remove(tenant: TenantId, yes: Annotated[bool, Yes] = False) -> None:
    """Remove a tenant: nothing is optimized for it any more. Its programs, its history and its traces stay.

    Asks first; without a terminal it wants --yes.
    """
    store = connections().configs
    newest = newest_version(store, tenant)
    ask(f"Remove {tenant}, whose programs go on serving and are not optimized any more", yes=yes)
    store.write(tenant, None, actor=who(), expected_version=newest.version)
    if dagster_home():
        from autoopt_pipeline.orchestration.partitions import withdraw_tenant

        with instance() as opened:
            if not withdraw_tenant(opened, tenant):
                console.print("a run is under way: the sensor removes the partition when it has ended")
    console.print(f"{tenant} removed. What stays:")
    for left in kept_after_removal(newest):
        console.print(f"- {left}")


@app.command("import")
def import_tenants(
    file: Annotated[
        Path,
        typer.Argument(help="JSON array, or JSON lines: configurations, or rows of the seed's store."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
) -> None:
    """Import configurations, and say which of their fields mean nothing here."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidConfig(f"{file}: {e}", "give a readable file") from None
    store = connections().configs
    imported, refused = read_rows(text, store.current(), where=str(file))
    if not imported and not refused:
        raise InvalidConfig(f"{file} has no rows", "give configurations as JSON, or one a line")
    if dry_run:
        _say_what_would_change(store, imported)
    else:
        with partitions() as register:
            for one in imported:
                version = write_config(store, one.config, actor=f"import by {who()}")
                register(one.config.tenant_id)
                console.print(f"{one.config.tenant_id} imported, configuration version {version}{_ignored(one)}")
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
    store = connections().configs
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
        print(no_tenants(store), file=sys.stderr)  # stdout holds what is exported, here nothing
    if broken:
        raise InvalidConfig(
            f"{len(broken)} of {len(entries)} configurations are not valid and were left out, first: {broken[0]}",
            "'autoopt config edit TENANT' opens one; export again",
        )


def _say_what_would_change(store: TenantConfigStore, imported: Sequence[ImportedConfig]) -> None:
    current = store.current()
    for one in imported:
        tenant = one.config.tenant_id
        if tenant not in current:
            console.print(f"{tenant} would be added{_ignored(one)}")
            continue
        found = changed_fields(in_effect(current[tenant]), one.config.model_dump(mode="json"))
        console.print(f"{tenant} would be saved, with {len(found)} fields changed{_ignored(one)}")
        print_changes(found)


def _ignored(one: ImportedConfig) -> str:
    return escape(f"; ignored: {', '.join(one.ignored)}") if one.ignored else ""


@contextmanager
def partitions() -> Generator[Callable[[str], None], None, None]:
    """A function that makes a tenant a partition. Opens the instance first, so nothing is written when it fails."""
    if dagster_home() is None:
        yield lambda tenant: console.print(f"no Dagster instance here: the sensor will make {tenant} a partition")
        return
    from autoopt_pipeline.orchestration.partitions import register_tenant

    with instance() as opened:
        yield lambda tenant: register_tenant(opened, tenant)
