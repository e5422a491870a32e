"""`autoopt artifacts`: exports or deletes all stored programs of a tenant."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from autoopt_pipeline.cli.confirmation import Yes, ask
from autoopt_pipeline.cli.context import console, current_user, dagster_home, instance, open_connections
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import ConfigConflict
from autoopt_pipeline.registry.audit_log import record_action
from autoopt_pipeline.registry.export import delete, export, stored_files
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.rollout_records import ROLLOUT_INDEX
from autoopt_pipeline.registry.serving_index import SERVING_INDEX
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.tenants.lifecycle import start_anew
from autoopt_pipeline.tenants.store import unknown_tenant
from autoopt_pipeline.tenants.stores.base import changes_in

app = typer.Typer(help="Export or delete all stored programs of a tenant.", no_args_is_help=True)


@app.command("export")
def export_artifacts(
    tenant: TenantId,
    target: Annotated[Path, typer.Argument(help="A new folder, or a new file whose name ends in '.zip'.")],
) -> None:
    """Copy a tenant's versions, transitions, ledger and sequential tests into a new folder or zip file."""
    connections = open_connections()
    files = connections.files
    _check_known(connections, files, tenant)
    exported = export(files, tenant, target)
    console.print(f"{tenant}: {len(exported)} files exported to {target}")
    _print_counts(exported)


@app.command("delete")
def delete_artifacts(
    tenant: TenantId,
    force: Annotated[bool, typer.Option("--force", help="Delete even if the tenant was not removed.")] = False,
    yes: Annotated[bool, Yes] = False,
    json: Json = False,
) -> None:
    """Delete a removed tenant's versions, transitions, ledger and sequential tests for good.

    If the tenant is added again, it starts from scratch: earlier outcomes and traces do not count. Asks for
    confirmation; without a terminal, --yes is required. You can repeat an interrupted deletion.
    """
    connections = open_connections()
    files = connections.files
    _check_known(connections, files, tenant)
    if tenant in connections.configs.current() and not force:
        raise ConfigConflict(
            f"tenant {tenant} still has a configuration, so its programs may be serving",
            f"'autoopt tenants remove {tenant}' first, or add --force",
        )
    _check_no_run(tenant)
    stored = stored_files(files, tenant)
    ask(f"Delete {len(stored)} files of {tenant} for good", yes=yes)
    _record_deletion(connections, tenant, has_files=bool(stored))
    deleted = delete(files, tenant)
    if json:
        console.print_json(data={"tenant": tenant, "deleted": deleted})
        return
    console.print(f"{tenant}: {len(deleted)} files deleted" if deleted else f"{tenant}: nothing is left to delete")
    _print_counts(deleted)
    console.print(
        "not deleted: earlier configurations, the audit log (the dashboard's Activity), runs and their reports in "
        "Dagster, traces in Phoenix",
    )


def _record_deletion(connections: Connections, tenant: str, *, has_files: bool) -> None:
    """Record the deletion: in the configuration history of a removed tenant, otherwise in the audit log."""
    history = connections.configs.history(tenant)
    if history and history[-1].document is None:
        if has_files or changes_in(history)[-1].what != "artifacts_deleted":
            start_anew(connections.configs, history[-1], actor=current_user(), now=datetime.now(UTC))
    elif has_files:
        record_action(
            connections.files,
            actor=current_user(),
            what="artifacts_deleted",
            tenant_id=tenant,
            module="",
            text="all versions",
        )


def _check_known(connections: Connections, files: ObjectStore, tenant: str) -> None:
    """Raise `UnknownTenant` if no tenant ever had this id."""
    validate_tenant_id(tenant)
    if not connections.configs.history(tenant) and not stored_files(files, tenant):
        raise unknown_tenant(tenant, connections.configs.current())


def _check_no_run(tenant: str) -> None:
    """Raise `ConfigConflict` while a run of the tenant could store more files."""
    if dagster_home() is None:
        return
    from autoopt_pipeline.modules.catalog import module_names
    from autoopt_pipeline.run_history.runs import unfinished_runs

    with instance() as opened:
        if run := unfinished_runs(opened, module_names()).get(tenant):
            raise ConfigConflict(f"run {run} of {tenant} is under way", "wait until it ends, or cancel it in Dagster")


def _print_counts(paths: Iterable[str]) -> None:
    """Print the number of files by module and kind."""
    for kind, count in sorted(Counter(map(_kind, paths)).items()):
        console.print(f"  {kind}: {count}")


def _kind(path: str) -> str:
    folder, module, kind, name = [*path.split("/"), "", "", ""][:4]
    if folder == ROLLOUT_INDEX:
        return f"{module} rollout index"
    if folder == SERVING_INDEX:
        return "serving index"
    return f"{module} {kind}/{name}" if kind == "versions" else f"{module} {kind}"
