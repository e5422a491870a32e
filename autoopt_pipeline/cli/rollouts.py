"""`autoopt rollouts`: compares new versions with their predecessors in production."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console, open_connections
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.registry.module_versions import describe_rollout, how_it_ended
from autoopt_pipeline.registry.rollout_records import indexed_rollouts
from autoopt_pipeline.registry.transitions import Rollout, active_rollout
from autoopt_pipeline.registry.version_store import VersionStore

if TYPE_CHECKING:
    from autoopt_pipeline.rollouts.analysis import RolloutAnalysis


def rollouts(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None,
    module: Annotated[
        str | None, typer.Argument(help="Only this module, with the results of its earlier rollouts.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the active rollouts with their analyses so far. Exit status 2 if an analysis fails."""
    connections = open_connections()
    selected = [
        (artifacts, rollout)
        for artifacts, rollout in _active(connections)
        if tenant in (None, artifacts.tenant_id) and module in (None, artifacts.module)
    ]
    ended = connections.artifacts(tenant, module).rollout_results() if tenant and module else []
    analyses = [(artifacts, rollout, _analyze(connections, artifacts, rollout)) for artifacts, rollout in selected]
    if json:
        console.print_json(
            data={
                "active": [_as_dict(*analysis) for analysis in analyses],
                "ended": [result.model_dump(mode="json") for result in ended],
            }
        )
    else:
        for artifacts, rollout, analysis in analyses:
            console.print(f"{artifacts.tenant_id}/{artifacts.module}: {describe_rollout(rollout)}")
            text = (
                f"[red]{escape(str(analysis))}[/red]" if isinstance(analysis, AutooptError) else escape(analysis.reason)
            )
            console.print(f"  {text}")
        for result in ended:
            console.print(f"ended {result.ended:%Y-%m-%d %H:%M} UTC: {escape(how_it_ended(result))}")
        if not analyses:
            console.print("no rollout is active")
    if any(isinstance(analysis, AutooptError) for _, _, analysis in analyses):
        raise typer.Exit(2)


def _active(connections: Connections) -> Iterator[tuple[VersionStore, Rollout]]:
    for entry in sorted(indexed_rollouts(connections.files), key=lambda entry: (entry.tenant_id, entry.module)):
        artifacts = connections.artifacts(entry.tenant_id, entry.module)
        if rollout := active_rollout(artifacts.last_transition()):
            yield artifacts, rollout


def _analyze(connections: Connections, artifacts: VersionStore, rollout: Rollout) -> "RolloutAnalysis | AutooptError":
    from autoopt_pipeline.rollouts.production import analyze_now

    settling = connections.settings.settling_seconds
    try:
        return analyze_now(connections.phoenix, connections.configs, artifacts, rollout, settling_seconds=settling)
    except AutooptError as e:
        return e


def _as_dict(artifacts: VersionStore, rollout: Rollout, analysis: "RolloutAnalysis | AutooptError") -> dict[str, Any]:
    fields: dict[str, Any] = {
        "tenant": artifacts.tenant_id,
        "module": artifacts.module,
        "version": rollout.version,
        "against": rollout.against,
        "fraction": rollout.fraction,
        "canary": rollout.is_canary,
        "since": rollout.transition.at.isoformat(),
    }
    if isinstance(analysis, AutooptError):
        return fields | {"error": str(analysis)}
    return fields | {
        "status": analysis.status.value,
        "reason": analysis.reason,
        "decisions": analysis.newer.decisions,
        "decisions_against": analysis.older.decisions,
        "outcomes": len(analysis.newer.outcomes),
        "outcomes_against": len(analysis.older.outcomes),
        "score": analysis.newer.score,
        "score_against": analysis.older.score,
        "comparisons": analysis.comparisons,
        "p_worse": analysis.p_worse,
        "p_better": analysis.p_better,
        "reviewed_disagreements": len(analysis.reviews.gains) if analysis.reviews else 0,
        "disagreements_to_review": analysis.reviews.to_review if analysis.reviews else 0,
    }
