"""What a module's moves say: what a rollback goes back to, what somebody went back from, and what is watched. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from autoopt_pipeline.artifacts.store import Declined, Manifest, ModuleArtifacts, Move
from autoopt_pipeline.contract import BASELINE


@dataclass(frozen=True)
class Watch:
    """Two versions that serve side by side since a move, until the next one. None is the baseline.

    `version` is the newer one: the active one while its predecessor, `against`, keeps a share of the requests; or a
    canary that gets that share (0 to 1) before it becomes active.
    """

    move: Move
    version: str | None
    against: str | None
    share: float

    @property
    def is_canary(self) -> bool:
        """Whether the newer version is not active yet."""
        return self.move.to == self.against


def watch_since(move: Move | None) -> Watch | None:
    """The watch that a last move began, if it did."""
    if move is None or not move.canary:
        return None
    name, share = next(iter(move.canary.items()))
    other = None if name == BASELINE else name
    # A move to what was active already brings a canary; any other one leaves a share to the predecessor.
    version, against = (other, move.to) if move.to == move.expected else (move.to, other)
    return Watch(move, version, against, share)


def standing(moves: Iterable[Move]) -> tuple[str | None, ...]:
    """The versions that a rollback steps through: the baseline (None) first, then each one that replaced it, the
    active one last. What somebody went back from is not among them, so a rollback never brings it back."""
    return _follow(moves)[0]


def rolled_back(moves: Iterable[Move]) -> dict[str, Move]:
    """The versions that somebody went back from and has not made active again since, each with the move that did.

    A move goes back when it leads to the baseline, or to a version that was active before. It goes back from all that
    came after that one. A canary that ends without becoming active was gone back from, too.
    """
    return _follow(moves)[1]


def why_unwanted(artifacts: ModuleArtifacts, digest: str) -> str | None:
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


def _follow(moves: Iterable[Move]) -> tuple[tuple[str | None, ...], dict[str, Move]]:
    stack: list[str | None] = [None]
    left: dict[str, Move] = {}
    trying: str | None = None
    for move in moves:
        if move.to in stack:
            kept = stack.index(move.to) + 1
            left |= {version: move for version in stack[kept:] if version}
            del stack[kept:]
        else:
            stack.append(move.to)
        watch = watch_since(move)
        now_trying = watch.version if watch and watch.is_canary else None
        if trying and trying not in {move.to, now_trying}:
            left[trying] = move
        trying = now_trying
        for version in (move.to, trying):
            if version:
                left.pop(version, None)
    return tuple(stack), left
