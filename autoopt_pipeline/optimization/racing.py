"""A race: programs are scored on growing prefixes of the same examples, and losers drop out early.

It is successive halving (Jamieson & Talwalkar, AISTATS 2016) with a paired test, as in racing (Maron & Moore, NIPS
1993). After each rung, the worse half of a heat is dropped, and so is every program that is clearly behind the best
one on the same examples. Pure: the caller passes the function that scores a program.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from autoopt_pipeline.hashing import unit_interval

# Fewest examples after which a program may be dropped. With fewer, luck would decide.
MIN_RUNG = 20

# A program is clearly behind by more standard errors than this, as at five answers against none or seven against one.
BEHIND = 2.0

P = TypeVar("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Contestant(Generic[P]):
    """A program in a race. Programs with the same `key` are the same. Making it took `cost` LM calls."""

    name: str
    key: str
    program: P
    cost: int = 0


@dataclass
class RaceEntry(Generic[P]):
    """An entrant's scores (0 to 1) on the first examples, and whether it was dropped after them."""

    entrant: Contestant[P]
    scores: list[float] = field(default_factory=list)
    dropped: bool = False

    def mean(self, size: int | None = None) -> float:
        """Return the mean score on the first `size` examples, or on all that were asked. 0 if none was."""
        scores = self.scores[:size]
        return sum(scores) / len(scores) if scores else 0.0


class Race(Generic[P]):
    """Heats on the same `size` examples, with the incumbent in all of them.

    `score` returns an entrant's scores on a range of examples, in order. If it raises, the race keeps its state, so the
    best program so far is still known. No program is asked an example twice.

    `entries` holds all entrants but the incumbent in order of arrival, so the cheaper ones come first. `repeats`
    holds programs that were not scored, because the same program was already in the race.
    """

    def __init__(
        self, size: int, score: Callable[[Contestant[P], int, int], Sequence[float]], incumbent: Contestant[P]
    ) -> None:
        self._size = size
        self._score = score
        self._keys = {incumbent.key}
        self.incumbent: RaceEntry[P] = RaceEntry(incumbent)
        self.entries: list[RaceEntry[P]] = []
        self.repeats: list[Contestant[P]] = []

    def start(self) -> None:
        """Score the incumbent on all examples, with which all others are compared."""
        self._judge(self.incumbent, self._size)

    def run(self, entrants: Iterable[Contestant[P]], *, apart: bool = False) -> None:
        """Run one heat. `entrants` may make each program only when it is taken.

        Each program is scored on the first rung as it comes. It competes with the best of earlier heats, too, unless
        the heat is `apart`: then only with the incumbent.
        """
        first, *further = rungs(self._size)
        champion = self.incumbent if apart else self.leader
        heat: list[RaceEntry[P]] = []
        for entrant in entrants:
            if entrant.key in self._keys:
                self.repeats.append(entrant)
                continue
            self._keys.add(entrant.key)
            heat.append(RaceEntry(entrant))
            self.entries.append(heat[-1])
            self._judge(heat[-1], first)
        self._drop(heat, champion, first)
        for rung in further:
            for entry in heat:
                if not entry.dropped:
                    self._judge(entry, rung)
            self._drop(heat, champion, rung)

    @property
    def leader(self) -> RaceEntry[P]:
        """The first of the best entrants if it beats the incumbent on the same examples, else the incumbent."""
        running = [entry for entry in self.entries if not entry.dropped]
        best = max(running, key=lambda entry: (len(entry.scores), entry.mean()), default=self.incumbent)
        return best if best.mean() > self.incumbent.mean(len(best.scores)) else self.incumbent

    def _judge(self, entry: RaceEntry[P], upto: int) -> None:
        asked = len(entry.scores)
        if asked < upto:
            entry.scores.extend(self._score(entry.entrant, asked, upto))

    def _drop(self, heat: Sequence[RaceEntry[P]], champion: RaceEntry[P], rung: int) -> None:
        """Keep the better half of the running entrants (the earlier of equals) without those clearly behind."""
        running = [entry for entry in heat if not entry.dropped]
        ranked = sorted(running, key=lambda entry: -entry.mean())
        best = max([champion, self.incumbent, *ranked], key=lambda entry: entry.mean(rung))
        kept = 1 if rung == self._size else math.ceil(len(ranked) / 2)
        for place, entry in enumerate(ranked):
            if place >= kept or clearly_behind(entry.scores, best.scores[:rung]):
                entry.dropped = True


def clearly_behind(scores: Sequence[float], best: Sequence[float]) -> bool:
    """Whether `scores` are lower than `best` on the same examples, by more than chance explains."""
    differences = [leading - score for leading, score in zip(best, scores, strict=True)]
    # The spread around a difference of 0, as in McNemar's test. It is above 0 whenever a score is lower.
    spread = math.sqrt(sum(difference**2 for difference in differences))
    return sum(differences) > BEHIND * spread


def rungs(size: int) -> list[int]:
    """Return the sizes of the prefixes: a quarter and half of the examples, if these are enough, and all."""
    return [rung for rung in (math.ceil(size / 4), math.ceil(size / 2)) if MIN_RUNG <= rung < size] + [size]


def balanced(items: Sequence[T], label: Callable[[T], str]) -> list[T]:
    """Order items so that every prefix has about the same fractions of labels as the whole."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(label(item), []).append(item)
    # Each label's items are spread evenly. A hash places the first one, because rare labels would clump otherwise.
    places = [
        ((place + unit_interval(name)) / len(group), name, place)
        for name, group in groups.items()
        for place in range(len(group))
    ]
    return [groups[name][place] for _, name, place in sorted(places)]
