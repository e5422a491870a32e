"""Why a program must not be promoted by itself: people, or a watch, have decided about the same one before."""

from collections.abc import Iterable, Mapping, Sequence

from autoopt_pipeline.registry.records import Declined, Manifest, Move
from autoopt_pipeline.registry.transitions import rolled_back
from autoopt_pipeline.registry.version_store import VersionStore


def why_unwanted(artifacts: VersionStore, digest: str) -> str | None:
    """Why a program with this digest must not be promoted by itself, as far as people or a watch have decided."""
    manifests, _ = artifacts.survey()
    found = {each.version: artifacts.declined(each.version) for each in manifests if each.program_sha256 == digest}
    declined = {version: said for version, said in found.items() if said}
    return comeback(digest, manifests, artifacts.moves(), declined)


def comeback(
    digest: str, manifests: Iterable[Manifest], moves: Sequence[Move], declined: Mapping[str, Declined] | None = None
) -> str | None:
    """Why a program with this digest must not be promoted by itself: a version that is the same was declined by a
    person, or was rolled back, and nobody has made one of them active since."""
    same = {manifest.version for manifest in manifests if manifest.program_sha256 == digest}
    for version, said in (declined or {}).items():
        if version in same and not any(move.to in same and move.at > said.at for move in moves):
            return (
                f"the same program was declined: {version}, on {said.at:%Y-%m-%d} by {said.by} ({said.why}); "
                "only a person can promote it"
            )
    left = {version: move for version, move in rolled_back(moves).items() if version in same}
    if not left:
        return None
    version, last = max(left.items(), key=lambda item: item[1].sequence)
    if any(move.to in same and move.sequence > last.sequence for move in moves):
        return None
    return (
        f"the same program was rolled back: {version}, on {last.at:%Y-%m-%d} by {last.by} ({last.why}); "
        "only a person can promote it again"
    )
