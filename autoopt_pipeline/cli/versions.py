"""`autoopt versions` and `autoopt promote`: a tenant's programs."""

import getpass
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from autoopt_pipeline.cli.context import connections, console, unknown_tenant
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.modules.registry import get_module
from autoopt_pipeline.tenant_id import validate_tenant_id

ModuleName = Annotated[str, typer.Argument(help="Module, e.g. routing.")]


def versions(tenant: TenantId, module: ModuleName) -> None:
    """List the versions of a tenant's program, and which is active."""
    parts = connections()
    artifacts = parts.artifacts(validate_tenant_id(tenant), get_module(module).name)
    found = artifacts.versions()
    if not found and tenant not in parts.configs.current():
        raise unknown_tenant(tenant)
    active = artifacts.active()
    moved_to = {move.to for move in artifacts.moves()}
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("version", no_wrap=True, min_width=25)  # as 'autoopt promote' takes it, so never cut
    for column in ("", "verdict", "score", "optimizer"):
        table.add_column(column, overflow="fold")
    for manifest in found:
        # The manifest is written before the move, which another run may have made impossible.
        stale = manifest.verdict == "promoted" and manifest.version not in moved_to
        table.add_row(
            manifest.version,
            "active" if active and active.version == manifest.version else "",
            "stale" if stale else manifest.verdict,
            f"{100 * manifest.incumbent_score:.1f} -> {100 * manifest.candidate_score:.1f} %",
            manifest.optimizer,
        )
    console.print(table)
    for manifest in found:
        lm = f"{manifest.lm} (not a language model)" if manifest.stand_in else manifest.lm
        console.print(f"{manifest.version}  by {escape(lm)}; {escape(manifest.reason)}")
    if active is None:
        console.print("no version is active: the module's baseline serves")


def promote(
    tenant: TenantId,
    module: ModuleName,
    version: Annotated[str, typer.Argument(help="As 'autoopt versions' lists it.")],
    why: Annotated[str, typer.Option(help="Reason, kept with the move.")] = "promoted by hand",
) -> None:
    """Make a version active: approve a candidate, or go back to an earlier one."""
    artifacts = connections().artifacts(validate_tenant_id(tenant), get_module(module).name)
    active = artifacts.active()
    before = active.version if active else None
    artifacts.move(version, expected=before, by=getpass.getuser(), why=why)
    console.print(f"{tenant}/{module}: {before or 'baseline'} -> {version}")
