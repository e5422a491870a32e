"""`autoopt artifacts`: everything that is stored of a tenant's programs, to take away or to delete."""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from autoopt_pipeline.cli.confirmation import Yes, ask
from autoopt_pipeline.cli.context import connections, console, dagster_home, instance, who
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import ConfigConflict
from autoopt_pipeline.registry.audit_log import record_action
from autoopt_pipeline.registry.export import delete, export, stored_files
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.rollout_records import ROLLOUT_INDEX
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.tenants.lifecycle import start_anew
from autoopt_pipeline.tenants.store import unknown_tenant
from autoopt_pipeline.tenants.stores.base import changes_in

app = typer.Typer(help="Export or delete all that is stored of a tenant's programs.", no_args_is_help=True)


@app.command("export")
def export_artifacts(
    tenant: TenantId,
    target: Annotated[Path, typer.Argument(help="A new folder, or a new file whose name ends in '.zip'.")],
) -> None:
    """Copy a tenant's versions, transitions, ledger and sequential tests into a new folder or zip file."""
    parts = connections()
    files = parts.files
    _check_known(parts, files, tenant)
    exported = export(files, tenant, target)
    console.print(f"{tenant}: {len(exported)} files exported to {target}")
    _print_counts(exported)


@app.command("delete")
def delete_artifacts(
    tenant: TenantId,
    force: Annotated[bool, typer.Option("--force", help="Even if the tenant was not removed.")] = False,
    yes: Annotated[bool, Yes] = False,
    json: Json = False,
) -> None:
    """Delete a removed tenant's versions, transitions, ledger and sequential tests for good.

    Should it be added again, it starts anew: earlier outcomes and traces do not count. Asks first; without a terminal
    it wants --yes. It can be repeated, and finishes what was left undone.
    """
    parts = connections()
    files = parts.files
    _check_known(parts, files, tenant)
    if tenant in parts.configs.current() and not force:
        raise ConfigConflict(
            f"tenant {tenant} still has a configuration, so its programs may be serving",
            f"'autoopt tenants remove {tenant}' first, or add --force",
        )
    _check_no_run(tenant)
    stored = stored_files(files, tenant)
    ask(f"Delete {len(stored)} files of {tenant} for good", yes=yes)
    _enter(parts, tenant, anything=bool(stored))
    deleted = delete(files, tenant)
    if json:
        console.print_json(data={"tenant": tenant, "deleted": deleted})
        return
    console.print(f"{tenant}: {len(deleted)} files deleted" if deleted else f"{tenant}: nothing is left to delete")
    _print_counts(deleted)
    console.print(
        "not deleted: earlier configurations, what people did (the dashboard's Activity), runs and their reports in "
        "Dagster, traces in Phoenix",
    )


def _enter(parts: Connections, tenant: str, *, anything: bool) -> None:
    """Say that it is deleted, and by whom: of a removed tenant in its history, which is what it would start from."""
    history = parts.configs.history(tenant)
    if history and history[-1].document is None:
        if anything or changes_in(history)[-1].what != "artifacts_deleted":
            start_anew(parts.configs, history[-1], actor=who(), now=datetime.now(UTC))
    elif anything:
        record_action(
            parts.files, actor=who(), what="artifacts_deleted", tenant_id=tenant, module="", text="all versions"
        )


def _check_known(parts: Connections, files: ObjectStore, tenant: str) -> None:
    """Raises `UnknownTenant` when nobody ever was called so."""
    validate_tenant_id(tenant)
    if not parts.configs.history(tenant) and not stored_files(files, tenant):
        raise unknown_tenant(tenant, parts.configs.current())


def _check_no_run(tenant: str) -> None:
    """Raises `ConfigConflict` while a run could store something more."""
    if dagster_home() is None:
        return
    from autoopt_pipeline.modules.catalog import module_names
    from autoopt_pipeline.run_history.runs import unfinished_runs

    with instance() as opened:
        if run := unfinished_runs(opened, module_names()).get(tenant):
            raise ConfigConflict(f"run {run} of {tenant} is under way", "wait for its end, or cancel it in Dagster")


def _print_counts(paths: Iterable[str]) -> None:
    """How many files of which kind, module by module."""
    for kind, count in sorted(Counter(map(_kind, paths)).items()):
        console.print(f"  {kind}: {count}")


def _kind(path: str) -> str:
    folder, module, kind, name = [*path.split("/"), "", "", ""][:4]
    if folder == ROLLOUT_INDEX:
        return f"{module} watched"
    return f"{module} {kind}/{name}" if kind == "versions" else f"{module} {kind}"
