"""`autoopt versions` and `autoopt promote`: a tenant's programs."""

import getpass
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from autoopt_pipeline.cli.context import connections, console
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.modules.registry import get_module
from autoopt_pipeline.tenant_id import validate_tenant_id

ModuleName = Annotated[str, typer.Argument(help="Module, e.g. routing.")]


def versions(tenant: TenantId, module: ModuleName) -> None:
    """List the versions of a tenant's program, and which is active."""
    artifacts = connections().artifacts(validate_tenant_id(tenant), get_module(module).name)
    active = artifacts.active()
    moved_to = {move.to for move in artifacts.moves()}
    table = Table("", "version", "verdict", "before", "after", "optimizer", "language model", "why")
    for manifest in artifacts.versions():
        table.add_row(
            "active" if active and active.version == manifest.version else "",
            manifest.version,
            # The manifest is written before the move, which another run may have made impossible.
            "stale" if manifest.verdict == "promoted" and manifest.version not in moved_to else manifest.verdict,
            f"{100 * manifest.incumbent_score:.1f} %",
            f"{100 * manifest.candidate_score:.1f} %",
            manifest.optimizer,
            f"{manifest.lm} (not a language model)" if manifest.stand_in else manifest.lm,
            escape(manifest.reason),
        )
    console.print(table)
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
