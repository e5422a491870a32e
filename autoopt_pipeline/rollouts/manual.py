"""Manual promotion, rollback and decline of versions, for the CLI and the dashboard. Each one records its reason."""

from dataclasses import dataclass

from autoopt_pipeline.errors import AutooptError, GateNotPassed, InvalidArtifact
from autoopt_pipeline.registry.module_versions import ModuleVersions, describe_transition
from autoopt_pipeline.registry.records import Manifest, Transition, Verdict
from autoopt_pipeline.registry.serialization import instantiate
from autoopt_pipeline.registry.transitions import rollback_stack
from autoopt_pipeline.rollouts.rollout import roll_out
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.config import RolloutPolicy

_UNPROVEN: dict[str, str] = {Verdict.REJECTED: "was rejected", Verdict.INCONCLUSIVE: "is not proven yet"}


@dataclass(frozen=True)
class ManualTransition:
    """A transition that a person made, with notes for that person."""

    transition: Transition
    notes: tuple[str, ...]


def promote(
    programs: ModuleVersions,
    version: str,
    *,
    actor: str,
    reason: str,
    policy: RolloutPolicy,
    force: bool = False,
) -> ManualTransition:
    """Make a version active, by approval of a candidate or choice of an earlier version. `policy` controls the rollout.

    Raises `GateNotPassed` for a version that was rejected or is not proven, unless forced; `InvalidArtifact` if it
    cannot serve or is active already; and `PromotionConflict`.
    """
    manifest = programs.manifest(version)
    verdict = programs.verdict(manifest)
    if not force and verdict in _UNPROVEN and not programs.was_active(version):
        raise GateNotPassed(
            f"{programs.name}: {version} {_UNPROVEN[verdict]}: {manifest.reason}",
            "add --force to make it active anyway",
        )
    _check_serves(programs, version)
    notes = _notes_on(programs, manifest)
    _check_not_active(programs, version)
    transition = roll_out(
        programs.artifacts, version, expected=programs.active, actor=actor, reason=reason, policy=policy
    )
    act = "approved" if verdict == Verdict.AWAITING_APPROVAL else "promoted"
    failures = _record_action(programs, act, actor=actor, text=f"{describe_transition(transition)}: {reason}")
    return ManualTransition(transition, (*notes, *failures))


def roll_back(programs: ModuleVersions, to: str | None = None, *, actor: str, reason: str) -> ManualTransition:
    """Go back to an earlier active version or the baseline, by default the previous one. Ends a canary.

    The abandoned versions are never promoted automatically again. Raises `InvalidArtifact` if there is no earlier
    version, or if it cannot serve; and `PromotionConflict`.
    """
    version = programs.previous() if to is None else _earlier(programs, to)
    if version is not None:
        _check_serves(programs, version)
    _check_not_active(programs, version)
    transition = programs.artifacts.transition(version, expected=programs.active, actor=actor, reason=reason)
    failures = _record_action(programs, "rolled_back", actor=actor, text=f"{describe_transition(transition)}: {reason}")
    return ManualTransition(transition, tuple(failures))


def decline(programs: ModuleVersions, version: str, *, actor: str, reason: str) -> list[str]:
    """Decline a version that needs approval. The same program is not proposed again.

    Returns notes for the person. Raises `InvalidArtifact` if the version does not need approval.
    """
    verdict = programs.verdict(programs.manifest(version))
    if verdict != Verdict.AWAITING_APPROVAL:
        last = programs.last_event(version)
        state = last.what if last and last.what != "made" else verdict.replace("_", " ")
        raise InvalidArtifact(
            f"{programs.name}: {version} does not need approval: it is {state}",
            "to go back from an active version, use 'autoopt rollback'",
        )
    programs.artifacts.decline(version, actor=actor, reason=reason)
    return _record_action(programs, "declined", actor=actor, text=f"{version}: {reason}")


def _earlier(programs: ModuleVersions, text: str) -> str | None:
    version = programs.named(text)
    if version in rollback_stack(programs.transitions):
        return version
    left = programs.rolled_back.get(str(version))
    state = f"was rolled back on {left.at:%Y-%m-%d} by {left.actor}" if left else "was never active"
    raise InvalidArtifact(
        f"{programs.name}: {version} {state}, so a rollback cannot return to it",
        f"make it active with 'autoopt promote {programs.artifacts.tenant_id} {programs.artifacts.module} {version}'",
    )


def _notes_on(programs: ModuleVersions, manifest: Manifest) -> list[str]:
    notes = []
    if left := programs.rolled_back.get(manifest.version):
        notes.append(f"it was rolled back on {left.at:%Y-%m-%d} by {left.actor}: {left.reason}")
    if declined := programs.declined(manifest.version):
        notes.append(f"it was declined on {declined.at:%Y-%m-%d} by {declined.actor}: {declined.reason}")
    if manifest.parent != programs.active and not programs.was_active(manifest.version):
        notes.append(f"it was compared with {manifest.parent or BASELINE}, which was not active")
    if manifest.named_lms:
        notes.append(f"an application answers with it only if it gives {', '.join(manifest.named_lms)} by name")
    return notes


def _check_not_active(programs: ModuleVersions, to: str | None) -> None:
    if to == programs.active and programs.rollout is None:
        raise InvalidArtifact(f"{programs.name}: {to or BASELINE} is active already", "nothing needs to change")


def _check_serves(programs: ModuleVersions, version: str) -> None:
    """Raise `InvalidArtifact` if a version cannot serve: it was withdrawn, is damaged or has another signature."""
    stored = programs.artifacts.load(version)
    try:
        instantiate(stored, stored.module, stored.labels)
    except InvalidArtifact as e:
        raise InvalidArtifact(
            f"{e.what} ({version})", f"choose another version, or 'autoopt rollback --to {BASELINE}'"
        ) from e


def _record_action(programs: ModuleVersions, act: str, *, actor: str, text: str) -> list[str]:
    """Record an act in the audit log. Never fails, because the act is done; returns a note if the record failed."""
    try:
        programs.artifacts.record_action(act, actor=actor, text=text)
    except AutooptError as e:
        return [f"the dashboard's Activity does not list this: {e}"]
    return []
