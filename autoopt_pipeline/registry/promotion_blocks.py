"""Why a run must not promote a program: people or a rollout have decided against the same program before."""

from collections.abc import Iterable, Mapping, Sequence

from autoopt_pipeline.registry.records import Declined, Manifest, Transition
from autoopt_pipeline.registry.transitions import rolled_back
from autoopt_pipeline.registry.version_store import VersionStore


def promotion_block_reason(artifacts: VersionStore, digest: str) -> str | None:
    """Return why a run must not promote a program with this digest, or None if nobody has decided against it."""
    manifests, _ = artifacts.list_versions()
    same = [manifest.version for manifest in manifests if manifest.program_sha256 == digest]
    declined = {version: record for version in same if (record := artifacts.declined(version))}
    return block_reason_from_history(digest, manifests, artifacts.transitions(), declined)


def block_reason_from_history(
    digest: str,
    manifests: Iterable[Manifest],
    transitions: Sequence[Transition],
    declined: Mapping[str, Declined] | None = None,
) -> str | None:
    """Return why a run must not promote a program with this digest.

    A version with the same program was declined or rolled back, and no such version has become active since.
    """
    same = {manifest.version for manifest in manifests if manifest.program_sha256 == digest}
    for version, record in (declined or {}).items():
        if version in same and not any(
            transition.to_version in same and transition.at > record.at for transition in transitions
        ):
            return (
                f"the same program was declined: {version}, on {record.at:%Y-%m-%d} by {record.actor} "
                f"({record.reason}); only a person can promote it"
            )
    same_rolled_back = {
        version: transition for version, transition in rolled_back(transitions).items() if version in same
    }
    if not same_rolled_back:
        return None
    version, last = max(same_rolled_back.items(), key=lambda item: item[1].sequence)
    if any(transition.to_version in same and transition.sequence > last.sequence for transition in transitions):
        return None
    return (
        f"the same program was rolled back: {version}, on {last.at:%Y-%m-%d} by {last.actor} ({last.reason}); "
        "only a person can promote it again"
    )
