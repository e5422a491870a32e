"""`autoopt promote`, `rollback` and `decline`: what people decide about versions. Each decision is recorded."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import connections, console, who
from autoopt_pipeline.cli.options import Json, ModuleName, open_programs
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.cli.versions import header, move_as_dict
from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.registry.module_versions import ModuleVersions, path_of
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.config import WatchSettings
from autoopt_pipeline.tenants.store import watch_settings

if TYPE_CHECKING:
    from autoopt_pipeline.rollouts.manual import Moved


def promote(
    tenant: TenantId,
    module: ModuleName,
    version: Annotated[str, typer.Argument(help="As 'autoopt versions' lists it.")],
    why: Annotated[str, typer.Option(help="Reason, kept with the move.")] = "promoted by hand",
    force: Annotated[bool, typer.Option("--force", help="Even if it was rejected, or is not proven yet.")] = False,
    canary: Annotated[
        float | None,
        typer.Option(min=0, max=0.5, help="Share of requests that it gets before it becomes active; 0: at once."),
    ] = None,
    watch: Annotated[
        bool | None,
        typer.Option(help="Whether its predecessor keeps a share and the two are compared."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a version active: approve a candidate, or choose an earlier one."""
    from autoopt_pipeline.rollouts import manual

    programs = open_programs(tenant, module)
    settings = _watch_settings(programs, canary, watch)
    moved = manual.promote(programs, version, by=who(), why=why, settings=settings, force=force)
    _tell(programs, moved, json)


def rollback(
    tenant: TenantId,
    module: ModuleName,
    to: Annotated[
        str | None, typer.Option(help=f"An earlier active version, or '{BASELINE}' [default: the one before].")
    ] = None,
    why: Annotated[str, typer.Option(help="Reason, kept with the move.")] = "rolled back by hand",
    json: Json = False,
) -> None:
    """Go back to what was active before: a version, or the module's baseline. A canary is given up.

    Again goes back further. What was left is not promoted by itself any more; 'autoopt promote' brings it back.
    """
    from autoopt_pipeline.rollouts import manual

    programs = open_programs(tenant, module)
    moved = manual.roll_back(programs, to, by=who(), why=why)
    _tell(programs, moved, json)


def decline(
    tenant: TenantId,
    module: ModuleName,
    version: Annotated[str, typer.Argument(help="As 'autoopt versions' lists it.")],
    why: Annotated[str, typer.Option(help="Reason, kept with the version.")] = "declined by hand",
    json: Json = False,
) -> None:
    """Say that a version which waits for approval is not wanted. The same program is not proposed again."""
    from autoopt_pipeline.rollouts import manual

    programs = open_programs(tenant, module)
    notes = manual.decline(programs, version, by=who(), why=why)
    if json:
        declined = programs.declined(version)
        told = declined.model_dump(mode="json") if declined else {}
        console.print_json(data={**header(programs), "version": version, **told})
        return
    console.print(f"{programs.name}: {version} is declined, and serves nobody")
    for note in notes:
        console.print(f"note: {escape(note)}")


def _watch_settings(programs: ModuleVersions, canary: float | None, watch: bool | None) -> WatchSettings:
    """As the tenant has it, but for what was said on the command line. A canary is watched, or nothing would end it."""
    settings = watch_settings(connections().configs, programs.artifacts.tenant_id)
    if canary and watch is False:
        raise InvalidArtifact("a canary that nobody watches would never end", "leave out --canary, or --no-watch")
    enabled = settings.enabled if watch is None and not canary else bool(watch or canary)
    return WatchSettings(
        enabled=enabled,
        holdback_share=settings.holdback_share,
        canary_share=(settings.canary_share if canary is None else canary) if enabled else 0,
        max_days=settings.max_days,
    )


def _tell(programs: ModuleVersions, moved: "Moved", json: bool) -> None:
    if json:
        console.print_json(data={**header(programs), **move_as_dict(moved.move), "notes": moved.notes})
        return
    console.print(f"{programs.name}: {path_of(moved.move)}")
    for note in moved.notes:
        console.print(f"note: {escape(note)}")
