"""`autoopt watches`: how new versions do in production beside their predecessors."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import connections, console
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.registry.module_versions import between, how_it_ended
from autoopt_pipeline.registry.rollout_records import all_watched
from autoopt_pipeline.registry.transitions import Watch, watch_since
from autoopt_pipeline.registry.version_store import VersionStore

if TYPE_CHECKING:
    from autoopt_pipeline.rollouts.analysis import RolloutAnalysis


def watches(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None,
    module: Annotated[str | None, typer.Argument(help="Only this module; also how its watches ended.")] = None,
    json: Json = False,
) -> None:
    """Show what is watched now, with what is known so far. Exit status 2 when a watch cannot be looked at."""
    parts = connections()
    found = [
        (artifacts, watch)
        for artifacts, watch in _open(parts)
        if tenant in (None, artifacts.tenant_id) and module in (None, artifacts.module)
    ]
    ended = parts.artifacts(tenant, module).watches() if tenant and module else []
    looks = [(artifacts, watch, _look(parts, artifacts, watch)) for artifacts, watch in found]
    if json:
        console.print_json(
            data={
                "open": [_as_dict(*each) for each in looks],
                "ended": [result.model_dump(mode="json") for result in ended],
            }
        )
    else:
        for artifacts, watch, look in looks:
            console.print(f"{artifacts.tenant_id}/{artifacts.module}: {between(watch)}")
            said = f"[red]{escape(str(look))}[/red]" if isinstance(look, AutooptError) else escape(look.reason)
            console.print(f"  {said}")
        for result in ended:
            console.print(f"ended {result.ended:%Y-%m-%d %H:%M} UTC: {escape(how_it_ended(result))}")
        if not looks:
            console.print("nothing is watched now")
    if any(isinstance(look, AutooptError) for _, _, look in looks):
        raise typer.Exit(2)


def _open(parts: Connections) -> Iterator[tuple[VersionStore, Watch]]:
    for watched in sorted(all_watched(parts.files), key=lambda each: (each.tenant_id, each.module)):
        artifacts = parts.artifacts(watched.tenant_id, watched.module)
        if watch := watch_since(artifacts.last_move()):
            yield artifacts, watch


def _look(parts: Connections, artifacts: VersionStore, watch: Watch) -> "RolloutAnalysis | AutooptError":
    from autoopt_pipeline.rollouts.production import look_now

    settling = parts.settings.settling_seconds
    try:
        return look_now(parts.phoenix, parts.configs, artifacts, watch, settling_seconds=settling)
    except AutooptError as e:
        return e


def _as_dict(artifacts: VersionStore, watch: Watch, look: "RolloutAnalysis | AutooptError") -> dict[str, Any]:
    told: dict[str, Any] = {
        "tenant": artifacts.tenant_id,
        "module": artifacts.module,
        "version": watch.version,
        "against": watch.against,
        "share": watch.share,
        "canary": watch.is_canary,
        "since": watch.move.at.isoformat(),
    }
    if isinstance(look, AutooptError):
        return told | {"error": str(look)}
    return told | {
        "verdict": look.verdict.value,
        "reason": look.reason,
        "decisions": look.newer.decisions,
        "decisions_against": look.older.decisions,
        "outcomes": len(look.newer.outcomes),
        "outcomes_against": len(look.older.outcomes),
        "score": look.newer.score,
        "score_against": look.older.score,
        "comparisons": look.comparisons,
        "p_worse": look.p_worse,
        "p_better": look.p_better,
    }
