"""Why a program must not be promoted by itself: people, or a rollout, have decided about the same one before."""

from collections.abc import Iterable, Mapping, Sequence

from autoopt_pipeline.registry.records import Declined, Manifest, Transition
from autoopt_pipeline.registry.transitions import rolled_back
from autoopt_pipeline.registry.version_store import VersionStore


def why_unwanted(artifacts: VersionStore, digest: str) -> str | None:
    """Why a program with this digest must not be promoted by itself, as far as people or a rollout have decided."""
    manifests, _ = artifacts.survey()
    found = {each.version: artifacts.declined(each.version) for each in manifests if each.program_sha256 == digest}
    declined = {version: said for version, said in found.items() if said}
    return comeback(digest, manifests, artifacts.transitions(), declined)


def comeback(
    digest: str,
    manifests: Iterable[Manifest],
    transitions: Sequence[Transition],
    declined: Mapping[str, Declined] | None = None,
) -> str | None:
    """Why a program with this digest must not be promoted by itself: a version that is the same was declined by a
    person, or was rolled back, and nobody has made one of them active since."""
    same = {manifest.version for manifest in manifests if manifest.program_sha256 == digest}
    for version, said in (declined or {}).items():
        if version in same and not any(
            transition.to_version in same and transition.at > said.at for transition in transitions
        ):
            return (
                f"the same program was declined: {version}, on {said.at:%Y-%m-%d} by {said.actor} ({said.reason}); "
                "only a person can promote it"
            )
    left = {version: transition for version, transition in rolled_back(transitions).items() if version in same}
    if not left:
        return None
    version, last = max(left.items(), key=lambda item: item[1].sequence)
    if any(transition.to_version in same and transition.sequence > last.sequence for transition in transitions):
        return None
    return (
        f"the same program was rolled back: {version}, on {last.at:%Y-%m-%d} by {last.actor} ({last.reason}); "
        "only a person can promote it again"
    )
