"""Manual promotion, rollback and rejection of versions, for the CLI and the dashboard. Each keeps its reason."""

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
    """A transition that a person made, and notes on it for that person."""

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
    """Make a version active: approve a candidate, or choose an earlier one; `policy` says how it is rolled out.

    Raises `GateNotPassed` for one that was rejected or waits for proof, unless forced; `InvalidArtifact` where it
    cannot serve or is active already; and `PromotionConflict`.
    """
    manifest = programs.manifest(version)
    verdict = programs.verdict(manifest)
    if not force and verdict in _UNPROVEN and not programs.was_active(version):
        raise GateNotPassed(
            f"{programs.name}: {version} {_UNPROVEN[verdict]}: {manifest.reason}",
            "to make it active all the same, add --force",
        )
    _check_serves(programs, version)
    notes = _worth_knowing(programs, manifest)
    _check_moves(programs, version)
    transition = roll_out(
        programs.artifacts, version, expected=programs.active, actor=actor, reason=reason, policy=policy
    )
    what = "approved" if verdict == Verdict.AWAITING_APPROVAL else "promoted"
    entered = _enter(programs, what, actor=actor, text=f"{describe_transition(transition)}: {reason}")
    return ManualTransition(transition, (*notes, *entered))


def roll_back(programs: ModuleVersions, to: str | None = None, *, actor: str, reason: str) -> ManualTransition:
    """Go back to an earlier active version or the baseline, by default what was active before. A canary is given up.

    What was left is not promoted by itself any more. Raises `InvalidArtifact` where there is nothing to go back to, or
    it cannot serve; and `PromotionConflict`.
    """
    version = programs.previous() if to is None else _earlier(programs, to)
    if version is not None:
        _check_serves(programs, version)
    _check_moves(programs, version)
    transition = programs.artifacts.transition(version, expected=programs.active, actor=actor, reason=reason)
    entered = _enter(programs, "rolled_back", actor=actor, text=f"{describe_transition(transition)}: {reason}")
    return ManualTransition(transition, tuple(entered))


def decline(programs: ModuleVersions, version: str, *, actor: str, reason: str) -> list[str]:
    """Say that a version which waits for approval is not wanted. The same program is not proposed again.

    Returns what is worth knowing besides. Raises `InvalidArtifact` where the version does not wait for approval.
    """
    verdict = programs.verdict(programs.manifest(version))
    if verdict != Verdict.AWAITING_APPROVAL:
        last = programs.last_event(version)
        what = last.what if last and last.what != "made" else verdict.replace("_", " ")
        raise InvalidArtifact(
            f"{programs.name}: {version} does not wait for approval: it is {what}",
            "to go back from an active version, use 'autoopt rollback'",
        )
    programs.artifacts.decline(version, actor=actor, reason=reason)
    return _enter(programs, "declined", actor=actor, text=f"{version}: {reason}")


def _earlier(programs: ModuleVersions, text: str) -> str | None:
    version = programs.named(text)
    if version in rollback_stack(programs.transitions):
        return version
    left = programs.rolled_back.get(str(version))
    what = f"was rolled back on {left.at:%Y-%m-%d} by {left.actor}" if left else "was never active"
    raise InvalidArtifact(
        f"{programs.name}: {version} {what}, so it is nothing to go back to",
        f"make it active with 'autoopt promote {programs.artifacts.tenant_id} {programs.artifacts.module} {version}'",
    )


def _worth_knowing(programs: ModuleVersions, manifest: Manifest) -> list[str]:
    notes = []
    if left := programs.rolled_back.get(manifest.version):
        notes.append(f"it had been rolled back on {left.at:%Y-%m-%d} by {left.actor}: {left.reason}")
    if declined := programs.declined(manifest.version):
        notes.append(f"it had been declined on {declined.at:%Y-%m-%d} by {declined.actor}: {declined.reason}")
    if manifest.parent != programs.active and not programs.was_active(manifest.version):
        notes.append(f"it was compared with {manifest.parent or BASELINE}, which is not what was active")
    return notes


def _check_moves(programs: ModuleVersions, to: str | None) -> None:
    if to == programs.active and programs.rollout is None:
        raise InvalidArtifact(
            f"{programs.name}: {to or BASELINE} is active already", "nothing was changed, and nothing has to be"
        )


def _check_serves(programs: ModuleVersions, version: str) -> None:
    """Raises `InvalidArtifact` when nothing could be answered with a version: it was withdrawn, it is damaged or it
    was made for another signature."""
    stored = programs.artifacts.load(version)
    try:
        instantiate(stored, stored.module, stored.labels)
    except InvalidArtifact as e:
        raise InvalidArtifact(f"{e.what} ({version})", f"choose another, or 'autoopt rollback --to {BASELINE}'") from e


def _enter(programs: ModuleVersions, what: str, *, actor: str, text: str) -> list[str]:
    """Enter what was done. Never fails, for it is done."""
    try:
        programs.artifacts.record_action(what, actor=actor, text=text)
    except AutooptError as e:
        return [f"the activity does not tell of it: {e}"]
    return []
