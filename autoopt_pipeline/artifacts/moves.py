"""What a module's moves say: what a rollback goes back to, and what somebody went back from. Pure."""

from collections.abc import Iterable, Sequence

from autoopt_pipeline.artifacts.store import Manifest, Move


def standing(moves: Iterable[Move]) -> tuple[str | None, ...]:
    """The versions that a rollback steps through: the baseline (None) first, then each one that replaced it, the
    active one last. What somebody went back from is not among them, so a rollback never brings it back."""
    return _follow(moves)[0]


def rolled_back(moves: Iterable[Move]) -> dict[str, Move]:
    """The versions that somebody went back from and has not made active again since, each with the move that did.

    A move goes back when it leads to the baseline, or to a version that was active before. It goes back from all that
    came after that one.
    """
    return _follow(moves)[1]


def comeback(digest: str, manifests: Iterable[Manifest], moves: Sequence[Move]) -> str | None:
    """Why a program with this digest must not be promoted by itself: a version that is the same was rolled back."""
    same = {manifest.version for manifest in manifests if manifest.program_sha256 == digest}
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
    for move in moves:
        if move.to in stack:
            kept = stack.index(move.to) + 1
            left |= {version: move for version in stack[kept:] if version}
            del stack[kept:]
        else:
            stack.append(move.to)
        if move.to:
            left.pop(move.to, None)
    return tuple(stack), left
