"""A race: programs are judged on growing prefixes of the same examples, and losers drop out early.

Successive halving (Jamieson & Talwalkar, AISTATS 2016) with a paired test beside it, as in racing (Maron & Moore,
NIPS 1993): after each rung the worse half of a heat goes, and so does whoever is clearly behind the best on the same
examples. Pure: what scores a program is given, and nothing here knows of models.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from autoopt_pipeline.hashing import unit_interval

# Fewest examples after which somebody may be dropped; at fewer, luck decides.
MIN_RUNG = 20

# Standard errors of the paired difference that are clear: five answers against none, or seven against one.
BEHIND = 2.0

P = TypeVar("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Contestant(Generic[P]):
    """A program that wants to win. Programs with the same `key` are the same; making it took `cost` calls."""

    name: str
    key: str
    program: P
    cost: int = 0


@dataclass
class RaceEntry(Generic[P]):
    """How far an entrant got: its scores (0 to 1) on the first examples, and whether it was dropped after them."""

    entrant: Contestant[P]
    scores: list[float] = field(default_factory=list)
    dropped: bool = False

    def mean(self, size: int | None = None) -> float:
        """The mean score on the first `size` examples, or on all that were asked; 0 where none was."""
        scores = self.scores[:size]
        return sum(scores) / len(scores) if scores else 0.0


class Race(Generic[P]):
    """Heats on the same `size` examples, with the incumbent in all of them.

    `score` gives an entrant's scores on the examples from one number up to another, in order. Whatever it raises
    leaves the race as it stood, so that the best so far can still be had. No program is asked an example twice.
    """

    def __init__(
        self, size: int, score: Callable[[Contestant[P], int, int], Sequence[float]], incumbent: Contestant[P]
    ) -> None:
        self._size = size
        self._score = score
        self._keys = {incumbent.key}
        self.incumbent: RaceEntry[P] = RaceEntry(incumbent)
        self.standings: list[RaceEntry[P]] = []
        """All entrants but the incumbent, in the order of their coming: what came first was cheaper."""
        self.repeats: list[Contestant[P]] = []
        """Programs that were in the race already, under another name or as the incumbent, and so were not judged."""

    def start(self) -> None:
        """Judge the incumbent on all examples; before that nobody can be compared with it."""
        self._judge(self.incumbent, self._size)

    def run(self, entrants: Iterable[Contestant[P]]) -> None:
        """One heat, of programs that may be made only as they are taken from `entrants`.

        Each is judged on the first rung as it comes. The best of earlier heats and the incumbent are the measure.
        """
        first, *further = rungs(self._size)
        champion = self.leader
        heat: list[RaceEntry[P]] = []
        for entrant in entrants:
            if entrant.key in self._keys:
                self.repeats.append(entrant)
                continue
            self._keys.add(entrant.key)
            heat.append(RaceEntry(entrant))
            self.standings.append(heat[-1])
            self._judge(heat[-1], first)
        self._drop(heat, champion, first)
        for rung in further:
            for standing in heat:
                if not standing.dropped:
                    self._judge(standing, rung)
            self._drop(heat, champion, rung)

    @property
    def leader(self) -> RaceEntry[P]:
        """The best so far: the first of the best entrants if it beats the incumbent on what both were asked."""
        going = [standing for standing in self.standings if not standing.dropped]
        best = max(going, key=lambda standing: (len(standing.scores), standing.mean()), default=self.incumbent)
        return best if best.mean() > self.incumbent.mean(len(best.scores)) else self.incumbent

    def _judge(self, standing: RaceEntry[P], upto: int) -> None:
        asked = len(standing.scores)
        if asked < upto:
            standing.scores.extend(self._score(standing.entrant, asked, upto))

    def _drop(self, heat: Sequence[RaceEntry[P]], champion: RaceEntry[P], rung: int) -> None:
        """Keep the better half of those still going, of equals the earlier, but nobody who is clearly behind."""
        going = [standing for standing in heat if not standing.dropped]
        ranked = sorted(going, key=lambda standing: -standing.mean())
        best = max([champion, self.incumbent, *ranked], key=lambda standing: standing.mean(rung))
        kept = 1 if rung == self._size else math.ceil(len(ranked) / 2)
        for place, standing in enumerate(ranked):
            if place >= kept or clearly_behind(standing.scores, best.scores[:rung]):
                standing.dropped = True


def clearly_behind(scores: Sequence[float], best: Sequence[float]) -> bool:
    """Whether the first scores are lower than the others on the same examples, by more than chance explains."""
    differences = [ahead - own for ahead, own in zip(best, scores, strict=True)]
    # The spread about no difference, as in McNemar's test: it is never 0 where somebody is behind.
    spread = math.sqrt(sum(difference**2 for difference in differences))
    return sum(differences) > BEHIND * spread


def rungs(size: int) -> list[int]:
    """The prefixes on which entrants are compared: a quarter, half and all of the examples, where these are enough."""
    return [rung for rung in (math.ceil(size / 4), math.ceil(size / 2)) if MIN_RUNG <= rung < size] + [size]


def balanced(items: Sequence[T], label: Callable[[T], str]) -> list[T]:
    """The items in an order in which every prefix has about the shares of labels that the whole has."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(label(item), []).append(item)
    # Each label's items are spread evenly; where its first one stands is up to a hash, else rare labels would clump.
    places = [
        ((place + unit_interval(name)) / len(group), name, place)
        for name, group in groups.items()
        for place in range(len(group))
    ]
    return [groups[name][place] for _, name, place in sorted(places)]
