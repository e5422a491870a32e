"""`autoopt promote`, `rollback` and `decline`: manual decisions about versions, which are recorded."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console, current_user, open_connections
from autoopt_pipeline.cli.options import Json, ModuleName, open_programs
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.cli.versions import header, transition_as_dict
from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.registry.module_versions import ModuleVersions, describe_transition
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.config import RolloutPolicy
from autoopt_pipeline.tenants.store import rollout_policy

if TYPE_CHECKING:
    from autoopt_pipeline.rollouts.manual import ManualTransition


def promote(
    tenant: TenantId,
    module: ModuleName,
    version: Annotated[str, typer.Argument(help="Version from 'autoopt versions'.")],
    reason: Annotated[str, typer.Option(help="Reason, kept with the transition.")] = "promoted by hand",
    force: Annotated[bool, typer.Option("--force", help="Promote even a rejected or unproven version.")] = False,
    canary: Annotated[
        float | None,
        typer.Option(min=0, max=0.5, help="Fraction of requests for the version before it becomes active; 0: none."),
    ] = None,
    monitor: Annotated[
        bool | None,
        typer.Option(help="Compare it in production with its predecessor, which keeps a fraction of requests."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a version active: approve a candidate, or choose an earlier version."""
    from autoopt_pipeline.rollouts import manual

    programs = open_programs(tenant, module)
    policy = _rollout_policy(programs, canary, monitor)
    result = manual.promote(programs, version, actor=current_user(), reason=reason, policy=policy, force=force)
    _print_transition(programs, result, json)


def rollback(
    tenant: TenantId,
    module: ModuleName,
    to: Annotated[
        str | None, typer.Option(help=f"An earlier active version, or '{BASELINE}' [default: the previous one].")
    ] = None,
    reason: Annotated[str, typer.Option(help="Reason, kept with the transition.")] = "rolled back by hand",
    json: Json = False,
) -> None:
    """Roll back to the previously active version, or to the module's baseline. Ends a canary.

    Each further rollback goes one version back. A version that was rolled back is never promoted automatically again;
    'autoopt promote' makes it active.
    """
    from autoopt_pipeline.rollouts import manual

    programs = open_programs(tenant, module)
    result = manual.roll_back(programs, to, actor=current_user(), reason=reason)
    _print_transition(programs, result, json)


def decline(
    tenant: TenantId,
    module: ModuleName,
    version: Annotated[str, typer.Argument(help="Version from 'autoopt versions'.")],
    reason: Annotated[str, typer.Option(help="Reason, kept with the version.")] = "declined by hand",
    json: Json = False,
) -> None:
    """Decline a version that needs approval. The same program is not proposed again."""
    from autoopt_pipeline.rollouts import manual

    programs = open_programs(tenant, module)
    notes = manual.decline(programs, version, actor=current_user(), reason=reason)
    if json:
        declined = programs.declined(version)
        fields = declined.model_dump(mode="json") if declined else {}
        console.print_json(data={**header(programs), "version": version, **fields})
        return
    console.print(f"{programs.name}: {version} is declined")
    for note in notes:
        console.print(f"note: {escape(note)}")


def _rollout_policy(programs: ModuleVersions, canary: float | None, monitor: bool | None) -> RolloutPolicy:
    """The tenant's policy with the command's options. A canary is always monitored, because otherwise it never ends."""
    policy = rollout_policy(open_connections().configs, programs.artifacts.tenant_id)
    if canary and monitor is False:
        raise InvalidArtifact("a canary that is not monitored would never end", "leave out --canary, or --no-monitor")
    monitored = policy.monitor if monitor is None and not canary else bool(monitor or canary)
    return RolloutPolicy(
        monitor=monitored,
        holdback_fraction=policy.holdback_fraction,
        canary_fraction=(policy.canary_fraction if canary is None else canary) if monitored else 0,
        max_days=policy.max_days,
    )


def _print_transition(programs: ModuleVersions, result: "ManualTransition", json: bool) -> None:
    if json:
        console.print_json(data={**header(programs), **transition_as_dict(result.transition), "notes": result.notes})
        return
    console.print(f"{programs.name}: {describe_transition(result.transition)}")
    for note in result.notes:
        console.print(f"note: {escape(note)}")
