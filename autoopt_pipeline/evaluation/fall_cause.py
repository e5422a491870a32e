"""What a fall in quality comes from, as far as counts by group tell. Pure.

The difference of two means is the sum of two parts (Kitagawa, JASA 1955): groups have other shares than before, or the
score within groups is another one.
"""

from dataclasses import dataclass
from enum import StrEnum

from autoopt_pipeline.evaluation.change_detector import Fall, Level, Tallies

# The group of decisions that failed. No label is written like this.
FAILED = "(failed)"

# Failures, and other traffic, have to explain this share of the fall. It is not half, because a fall that is found has
# looked worse than it is, and shares are known more exactly than scores.
_BY_SHARES = 0.4

# One class has to explain this share of the fall, and the others fell by no more than this share of its fall.
_OF_ONE_CLASS, _OTHERS_FELL = 0.5, 0.5


class Cause(StrEnum):
    FAILURES = "failures"
    TRAFFIC = "traffic"
    ONE_CLASS = "one class"
    UNKNOWN = "unknown: the model or the traffic"


@dataclass(frozen=True)
class _Part:
    """A group's part in a fall: through its share of the outcomes, and through its score. `share` is its later share,
    0 to 1."""

    group: str
    share: float
    by_share: float
    by_score: float


def cause_of(fall: Fall) -> tuple[Cause, str]:
    """The cause, and the class where it is one class, else ""."""
    parts = _parts(fall)
    total = sum(part.by_share + part.by_score for part in parts)
    failed = sum(part.by_share for part in parts if part.group == FAILED)
    if failed >= _BY_SHARES * total:
        return Cause.FAILURES, ""
    if sum(part.by_share for part in parts if part.group != FAILED) >= _BY_SHARES * total:
        return Cause.TRAFFIC, ""
    worst = max(parts, key=lambda part: part.by_score)
    others = 1 - worst.share
    if worst.by_score >= _OF_ONE_CLASS * total and others > 0:
        fell = sum(part.by_score for part in parts if part is not worst) / others
        if fell <= _OTHERS_FELL * worst.by_score / worst.share:
            return Cause.ONE_CLASS, worst.group
    return Cause.UNKNOWN, ""


def _parts(fall: Fall) -> list[_Part]:
    """One part for each group, of all sources together. A source counts as much as it has later outcomes."""
    parts: dict[str, _Part] = {}
    for source, later in fall.later.items():
        earlier = fall.earlier[source]
        before, after = _sum(fall.earlier, source), _sum(fall.later, source)
        weight = after.count / fall.outcomes
        for group in {*earlier, *later}:
            old, new = earlier.get(group, Level()), later.get(group, Level())
            score = old.mean if old.count else 0.0 if group == FAILED else before.mean
            share = new.count / after.count
            known = parts.get(group, _Part(group, 0.0, 0.0, 0.0))
            parts[group] = _Part(
                group,
                known.share + weight * share,
                known.by_share + weight * (old.count / before.count - share) * (score - before.mean),
                known.by_score + weight * share * (score - new.mean if new.count else 0.0),
            )
    return list(parts.values())


def _sum(tallies: Tallies, source: str) -> Level:
    groups = tallies[source].values()
    return Level(count=sum(group.count for group in groups), total=sum(group.total for group in groups))
