"""Moves of the active version, and what they say: what a rollback goes back to, what somebody went back from, and what
is watched. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autoopt_pipeline.registry.records import Move, Pointer, Rollback
from autoopt_pipeline.span_contract import BASELINE


def pointer_after(moves: Sequence[Move]) -> Pointer:
    """What `active.json` says after these moves, of which there is at least one."""
    last = moves[-1]
    left = tuple(version for version, move in rolled_back(moves).items() if move is last)
    return Pointer(
        version=last.to,
        sequence=last.sequence,
        canary=last.canary,
        rolled_back=Rollback(versions=left, at=last.at, by=last.by, why=last.why) if left else None,
    )


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


def rollback_stack(moves: Iterable[Move]) -> tuple[str | None, ...]:
    """The versions that a rollback steps through: the baseline (None) first, then each one that replaced it, the
    active one last. What somebody went back from is not among them, so a rollback never brings it back."""
    return _follow(moves)[0]


def rolled_back(moves: Iterable[Move]) -> dict[str, Move]:
    """The versions that somebody went back from and has not made active again since, each with the move that did.

    A move goes back when it leads to the baseline, or to a version that was active before. It goes back from all that
    came after that one. A canary that ends without becoming active was gone back from, too.
    """
    return _follow(moves)[1]


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
