"""`autoopt promote` and `autoopt rollback`: changing the active version by hand. Each change is a recorded move."""

from typing import Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.artifacts.moves import standing
from autoopt_pipeline.artifacts.store import Manifest, Move
from autoopt_pipeline.cli.context import connections, console, who
from autoopt_pipeline.cli.programs import BASELINE, Json, ModuleName, Programs, built, open_programs
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.cli.versions import header, move_as_dict, path_of
from autoopt_pipeline.errors import AutooptError, InvalidArtifact, NotProven, UnknownTenant
from autoopt_pipeline.optimization.rollout import roll_out, stop_sharing
from autoopt_pipeline.tenants.config import WatchSettings
from autoopt_pipeline.tenants.store import read_config

_UNPROVEN = {"rejected": "was rejected", "waiting": "is not proven yet"}


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
    programs = open_programs(tenant, module)
    manifest = programs.manifest(version)
    if not force:
        _check_proven(programs, manifest)
    _check_serves(programs, version)
    settings = _watch_settings(programs, canary, watch)
    notes = _worth_knowing(programs, manifest)
    _check_moves(programs, version)
    _tell(
        programs,
        roll_out(programs.artifacts, version, expected=programs.active, by=who(), why=why, settings=settings),
        json,
        notes,
    )


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
    programs = open_programs(tenant, module)
    version = programs.previous() if to is None else _earlier(programs, to)
    if version is not None:
        _check_serves(programs, version)
    _check_moves(programs, version)
    _tell(programs, programs.artifacts.move(version, expected=programs.active, by=who(), why=why), json, [])


def _earlier(programs: Programs, text: str) -> str | None:
    version = programs.named(text)
    if version in standing(programs.moves):
        return version
    left = programs.rolled_back.get(str(version))
    what = f"was rolled back on {left.at:%Y-%m-%d} by {left.by}" if left else "was never active"
    raise InvalidArtifact(
        f"{programs.name}: {version} {what}, so it is nothing to go back to",
        f"make it active with 'autoopt promote {programs.artifacts.tenant_id} {programs.artifacts.module} {version}'",
    )


def _check_proven(programs: Programs, manifest: Manifest) -> None:
    verdict = programs.verdict(manifest)
    if verdict in _UNPROVEN and not programs.was_active(manifest.version):
        raise NotProven(
            f"{programs.name}: {manifest.version} {_UNPROVEN[verdict]}: {manifest.reason}",
            "to make it active all the same, say --force",
        )


def _worth_knowing(programs: Programs, manifest: Manifest) -> list[str]:
    notes = []
    if left := programs.rolled_back.get(manifest.version):
        notes.append(f"it had been rolled back on {left.at:%Y-%m-%d} by {left.by}: {left.why}")
    if manifest.parent != programs.active and not programs.was_active(manifest.version):
        notes.append(f"it was compared with {manifest.parent or BASELINE}, which is not what was active")
    return notes


def _watch_settings(programs: Programs, canary: float | None, watch: bool | None) -> WatchSettings:
    """As the tenant has it, but for what was said on the command line. A canary is watched, or nothing would end it."""
    try:
        config, _ = read_config(connections().configs, programs.artifacts.tenant_id)
        settings = config.watch
    except UnknownTenant:
        settings = WatchSettings(enabled=False)
    if canary and watch is False:
        raise InvalidArtifact("a canary that nobody watches would never end", "leave out --canary, or --no-watch")
    enabled = settings.enabled if watch is None and not canary else bool(watch or canary)
    return WatchSettings(
        enabled=enabled,
        holdback_share=settings.holdback_share,
        canary_share=(settings.canary_share if canary is None else canary) if enabled else 0,
        max_days=settings.max_days,
    )


def _check_moves(programs: Programs, to: str | None) -> None:
    if to == programs.active and programs.watch is None:
        raise InvalidArtifact(
            f"{programs.name}: {to or BASELINE} is active already", "nothing was changed, and nothing has to be"
        )


def _tell(programs: Programs, move: Move, json: bool, notes: list[str]) -> None:
    notes = [*notes, *_stop_sharing(programs)]
    if json:
        console.print_json(data={**header(programs), **move_as_dict(move), "notes": notes})
        return
    console.print(f"{programs.name}: {path_of(move)}", soft_wrap=True)
    for note in notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)


def _check_serves(programs: Programs, version: str) -> None:
    """Raises `InvalidArtifact` when nothing could be answered with a version: it was withdrawn, it is damaged or it
    was made for another signature."""
    stored = programs.artifacts.load(version)
    try:
        built(stored, stored.module, stored.labels)
    except InvalidArtifact as e:
        raise InvalidArtifact(f"{e.what} ({version})", f"choose another, or 'autoopt rollback --to {BASELINE}'") from e


def _stop_sharing(programs: Programs) -> list[str]:
    """Says what was done. Never fails, for the move stands."""
    try:
        withdrawn = stop_sharing(connections().shared(programs.artifacts.module), programs.artifacts)
    except AutooptError as e:
        return [f"whether its instructions are shared is unknown: {e}"]
    return [f"the instructions that {withdrawn} shared are withdrawn"] if withdrawn else []
