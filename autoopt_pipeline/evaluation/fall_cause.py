"""What a fall in quality comes from, as far as counts by group and replays of the model tell. Pure.

The difference of two means is the sum of two parts (Kitagawa, JASA 1955): groups have other shares than before, or the
score within groups is another one. The latter comes from the language model or from the requests. They are told apart
by asking the model again what it was asked before (`evaluation.model_change`).
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from autoopt_pipeline.evaluation.change_detector import Fall, Level, Tallies
from autoopt_pipeline.evaluation.model_change import cannot_explain, has_changed
from autoopt_pipeline.registry.quality_records import QualityFall
from autoopt_pipeline.registry.replays import ModelReplay

# The group of decisions that failed. No label is written like this.
FAILED = "(failed)"

# Failures, and other traffic, have to explain this share of the fall. It is not half, because a fall that is found has
# looked worse than it is, and shares are known more exactly than scores.
_BY_SHARES = 0.4

# One class has to explain this share of the fall, and the others fell by no more than this share of its fall.
_OF_ONE_CLASS, _OTHERS_FELL = 0.5, 0.5


# How far the moment since which quality fell may be from the change that caused it.
_AROUND = timedelta(days=3)


class Cause(StrEnum):
    FAILURES = "failures"
    TRAFFIC = "traffic"
    ONE_CLASS = "one class"
    MODEL = "the language model"
    WITHIN_CLASSES = "traffic within classes"
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


def completed(
    fall: QualityFall,
    *,
    newest: ModelReplay | None,
    changed: ModelReplay | None,
    told_by_scores: bool,
) -> QualityFall:
    """The fall with the cause that replays of its version tell: the last one, and the last that found a change.

    Where counts have told the cause, as of failures and of other shares of the classes, it stays. Only a fall that is
    `told_by_scores` cannot come from a model that answers as before: confidence is not compared.
    """
    if fall.cause not in {Cause.UNKNOWN, Cause.ONE_CLASS}:
        return fall
    if changed and changed.at >= fall.since - _AROUND and changed.same_at <= fall.since + _AROUND:
        return fall.model_copy(update={"cause": Cause.MODEL.value, "detail": str(changed)})
    if fall.cause != Cause.UNKNOWN or newest is None or newest.at < fall.since or has_changed(newest):
        return fall
    if newest.answered_at > fall.since:
        detail = f"what {newest.lm} answered before it is not known"
    elif told_by_scores and cannot_explain(newest, fall.before - fall.after):
        return fall.model_copy(update={"cause": Cause.WITHIN_CLASSES.value, "detail": str(newest)})
    else:
        detail = f"{newest}, which does not tell"
    return fall.model_copy(update={"detail": detail})


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
