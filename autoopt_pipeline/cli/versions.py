"""`autoopt versions` and `autoopt history`: a tenant's program versions, and the transitions between them."""

from typing import Any

from rich.markup import escape

from autoopt_pipeline.cli.context import console
from autoopt_pipeline.cli.options import Json, ModuleName, open_programs
from autoopt_pipeline.cli.tables import print_table
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.registry.module_versions import ModuleVersions, describe_transition, lm_of
from autoopt_pipeline.registry.records import Transition
from autoopt_pipeline.text import percent


def versions(tenant: TenantId, module: ModuleName, json: Json = False) -> None:
    """List the versions of a tenant's program, with the active one."""
    programs = open_programs(tenant, module)
    if json:
        console.print_json(data=_as_dict(programs))
        return
    rows = []
    events = {name: programs.last_event(name) for name in (*(m.version for m in programs.manifests), *programs.damaged)}
    for manifest in programs.manifests:
        event = events[manifest.version]
        rows.append(
            (
                manifest.version,
                event.what if event else "",
                programs.verdict(manifest),
                f"{percent(manifest.incumbent_score)} -> {percent(manifest.candidate_score)} %",
                escape(manifest.optimizer),
            )
        )
    for version in programs.damaged:
        event = events[version]
        rows.append((escape(version), event.what if event else "", "[red]damaged[/red]", "", ""))
    print_table(("version", "", "verdict", "score", "optimizer"), rows)
    for manifest in programs.manifests:
        console.print(f"{manifest.version}  by {escape(lm_of(manifest))}; {escape(manifest.reason)}")
        if (event := events[manifest.version]) and event.what != "made":
            console.print(
                f"  {event.what} {event.at:%Y-%m-%d %H:%M:%S} UTC by {escape(event.actor)}: {escape(event.reason)}"
            )
    for error in programs.damaged.values():
        console.print(f"[red]damaged[/red] {escape(str(error))}")
    if programs.active is None:
        console.print("no version is active: the module's baseline serves")


def history(tenant: TenantId, module: ModuleName, json: Json = False) -> None:
    """List every change of the active version, with its time, actor, versions and reason."""
    programs = open_programs(tenant, module)
    if json:
        transitions = [transition_as_dict(transition) for transition in programs.transitions]
        console.print_json(data={**header(programs), "active": programs.active, "transitions": transitions})
        return
    for transition in programs.transitions:
        console.print(
            f"{transition.sequence:>3}  {transition.at:%Y-%m-%d %H:%M:%S} UTC  {describe_transition(transition)}"
        )
        console.print(f"     by {escape(transition.actor)}: {escape(transition.reason)}")
    if not programs.transitions:
        console.print("no transition yet: the module's baseline serves")


def header(programs: ModuleVersions) -> dict[str, Any]:
    return {"tenant": programs.artifacts.tenant_id, "module": programs.artifacts.module}


def transition_as_dict(transition: Transition) -> dict[str, Any]:
    return transition.model_dump(mode="json", exclude={"resets_alpha_budget", "proving_alpha"})


def standing_as_dict(programs: ModuleVersions, version: str) -> dict[str, Any]:
    """Whether a version is active, its last event, and its withdrawal, decline or rollback."""
    event = programs.last_event(version)
    withdrawn, left = programs.withdrawal(version), programs.rolled_back.get(version)
    declined = programs.declined(version)
    return {
        "active": version == programs.active,
        "last_event": {"what": event.what, "at": event.at.isoformat(), "actor": event.actor, "reason": event.reason}
        if event
        else None,
        "declined": declined.model_dump(mode="json") if declined else None,
        "withdrawn": withdrawn.model_dump(mode="json") if withdrawn else None,
        "rolled_back": transition_as_dict(left) if left else None,
    }


def _as_dict(programs: ModuleVersions) -> dict[str, Any]:
    return {
        **header(programs),
        "active": programs.active,
        "versions": [
            {
                "version": manifest.version,
                "verdict": programs.verdict(manifest),
                **standing_as_dict(programs, manifest.version),
                "manifest": manifest.model_dump(mode="json"),
            }
            for manifest in programs.manifests
        ],
        "damaged": {version: str(error) for version, error in programs.damaged.items()},
    }
