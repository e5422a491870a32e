"""`autoopt config`: shows and changes a tenant's configuration and its versions."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console, current_user, open_connections
from autoopt_pipeline.cli.editor import edited_file, open_in_editor
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.cli.output import print_changes
from autoopt_pipeline.cli.tables import print_table
from autoopt_pipeline.cli.tenants import TenantId, partitions
from autoopt_pipeline.durations import durations_written
from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.tenants.checking import check_names
from autoopt_pipeline.tenants.config import RoutingConfigUnified, chosen_fields, with_field, without_field
from autoopt_pipeline.tenants.diff import changed_fields, in_effect, version_before
from autoopt_pipeline.tenants.lifecycle import check_distinct, spellings
from autoopt_pipeline.tenants.store import newest_version, read_config, stored_version, unknown_tenant, write_config
from autoopt_pipeline.tenants.stores.base import StoredConfig, changes_in
from autoopt_pipeline.tenants.yaml_format import as_text, from_text, reverted_to

app = typer.Typer(help="Read and change the configuration of a tenant.", no_args_is_help=True)


@app.command()
def get(tenant: TenantId, version: Annotated[int | None, typer.Option(help="An earlier version.")] = None) -> None:
    """Print a configuration as JSON, including defaults. Durations are written as 2h or 30d."""
    store = open_connections().configs
    config = read_config(store, tenant)[0] if version is None else stored_version(store, tenant, version).parse()
    console.print_json(data=durations_written(config.model_dump(mode="json")))


@app.command("set")
def set_fields(
    tenant: TenantId,
    changes: Annotated[
        list[str],
        typer.Argument(help="FIELD=VALUE, e.g. budget.max_lm_calls=2000; values are JSON, or durations such as 2h."),
    ],
) -> None:
    """Change fields. The other fields stay as they are."""
    store = open_connections().configs
    config, version = read_config(store, tenant)
    before = chosen_fields(config)
    for path, value in fields_of(changes).items():
        config = with_field(config, path, value)
    check_names(config, before)
    written = write_config(store, config, actor=current_user(), expected_version=version)
    console.print(f"{tenant}: configuration version {written}")


def fields_of(changes: Sequence[str]) -> dict[str, str]:
    """Map fields to values. Raises `InvalidConfig` for any text that is not FIELD=VALUE, and for a repeated field."""
    fields: dict[str, str] = {}
    for change in changes:
        path, separator, value = change.partition("=")
        path = path.strip()
        if not separator:
            raise InvalidConfig(f"{change[:60]!r} is not FIELD=VALUE", "e.g. enable_auto_optimization=false")
        if path in fields:
            raise InvalidConfig(f"{path[:60]} is given twice", "give one value")
        fields[path] = value
    return fields


@app.command("unset")
def unset_fields(
    tenant: TenantId,
    fields: Annotated[list[str], typer.Argument(help="e.g. budget.max_lm_calls, or modules.NAME to remove it.")],
) -> None:
    """Let fields follow their defaults again, or remove a module. The other fields stay as they are."""
    store = open_connections().configs
    config, version = read_config(store, tenant)
    before = config.model_dump(mode="json")
    for field in fields:
        config = without_field(config, field.strip())
    written = write_config(store, config, actor=current_user(), expected_version=version)
    console.print(f"{tenant}: configuration version {written}")
    print_changes(changed_fields(before, config.model_dump(mode="json")))


@app.command()
def edit(tenant: TenantId) -> None:
    """Open a configuration in your editor ($VISUAL or $EDITOR), even an invalid one.

    Fields that are not listed follow the defaults. Your text is never lost: if it cannot be saved, the error names
    the file with your text.
    """
    store = open_connections().configs
    newest = newest_version(store, tenant)
    text = as_text(newest)
    with edited_file(text) as file:
        config = _edited(file, text, newest)
        if config is None:
            console.print(f"{tenant}: nothing changed")
            return
        written = write_config(store, config, actor=current_user(), expected_version=newest.version)
    console.print(f"{tenant}: configuration version {written}")
    print_changes(changed_fields(in_effect(newest), config.model_dump(mode="json")))


def _edited(file: Path, before: str, newest: StoredConfig) -> RoutingConfigUnified | None:
    """The edited configuration, or None if the person changed nothing. On a terminal they can correct mistakes."""
    while True:
        text = open_in_editor(file)
        if text == before:
            return None
        try:
            return from_text(text, newest)
        except InvalidConfig as e:
            if not sys.stdin.isatty():
                raise
            console.print(f"[red]not saved:[/red] {escape(str(e))}")
            if not typer.confirm("Go back to the editor?", default=True):
                raise


@app.command()
def history(tenant: TenantId, json: Json = False) -> None:
    """List all versions of a configuration."""
    store = open_connections().configs
    versions = store.history(tenant)
    if not versions:
        raise unknown_tenant(tenant, store.current())
    changes = changes_in(versions)
    if json:
        entries = [
            {
                "version": entry.version,
                "written_at": entry.written_at.isoformat(),
                "actor": entry.actor,
                "state": "removed" if entry.document is None else "saved",
                "what": change.what,
            }
            for entry, change in zip(versions, changes, strict=True)
        ]
        console.print_json(data={"tenant": tenant, "versions": entries})
        return
    print_table(
        ("version", "written (UTC)", "by", "what"),
        [
            (
                str(change.version),
                f"{change.at:%Y-%m-%d %H:%M:%S}",
                escape(change.actor or "?"),
                change.what.replace("_", " "),
            )
            for change in changes
        ],
    )


@app.command()
def diff(
    tenant: TenantId,
    version_a: Annotated[int | None, typer.Argument(help="A version [default: the previous one].")] = None,
    version_b: Annotated[int | None, typer.Argument(help="The other version [default: the newest].")] = None,
    json: Json = False,
) -> None:
    """Show how two versions of a configuration differ, field by field.

    Fields that were not set have today's defaults.
    """
    store = open_connections().configs
    after = newest_version(store, tenant) if version_b is None else stored_version(store, tenant, version_b)
    before = version_before(store.history(tenant), after) if version_a is None else version_a
    changes = changed_fields(in_effect(stored_version(store, tenant, before)), in_effect(after))
    if json:
        entries = [{"field": change.field, "from": change.before, "to": change.after} for change in changes]
        console.print_json(data={"tenant": tenant, "from": before, "to": after.version, "changes": entries})
        return
    console.print(f"{tenant}: version {before} -> {after.version}")
    print_changes(changes)


@app.command()
def revert(
    tenant: TenantId, version: Annotated[int, typer.Argument(help="Version from 'autoopt config history'.")]
) -> None:
    """Save an earlier version again, as a new version. This also brings back a removed tenant.

    Fails if the version is not valid any more.
    """
    store = open_connections().configs
    history = store.history(tenant)
    if not history:
        raise unknown_tenant(tenant, store.current())
    newest = history[-1]
    config = reverted_to(stored_version(store, tenant, version), newest)
    if newest.document is None:
        check_distinct(tenant, spellings(store.current()))
        with partitions() as register:
            written = write_config(store, config, actor=current_user(), expected_version=newest.version)
            register(tenant)
        console.print(f"{tenant} is back: configuration version {written}, the same as {version}")
        return
    written = write_config(store, config, actor=current_user(), expected_version=newest.version)
    console.print(f"{tenant}: configuration version {written}, the same as {version}")
    print_changes(changed_fields(in_effect(newest), config.model_dump(mode="json")))
