"""Splits examples into training, dev and holdout: those that train, choose among candidates, and judge.

A hash of a query's normalized text decides its side, so a query never moves from the holdout into training when new
traces come. Near-duplicates form a group, which is on one side only.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.modules.similarity import group_near_duplicates, normalize_query
from autoopt_pipeline.modules.spec import Example, Provenance

# Fractions of queries that train, choose and judge. Judging needs as much data as training.
TRAIN_SHARE, DEV_SHARE, HOLDOUT_SHARE = 0.4, 0.2, 0.4

_RANK = {Provenance.HUMAN: 2, Provenance.JUDGE: 1, Provenance.OUTCOME: 0}
_SIDES = ("train", "dev", "holdout")


@dataclass(frozen=True)
class HoldoutExample:
    """A holdout example with the normalized queries of its whole group, none of which a program may have seen."""

    example: Example
    group: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Examples by use, each query once, in an order that does not depend on the order of traces.

    `holdout` has independent labels and judges the gain. `guard` holds the other examples of the holdout side: their
    labels may be the incumbent's own answers, so they can only show a loss. `drawable` holds everything on the holdout
    side, also requests without a label, and `dev_requests` the unreviewed requests of the dev side. `learnt` holds the
    normalized queries that may train or choose. `shown` counts the groups that cannot judge because a compared program
    shows one of their queries to the model.
    """

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    holdout: tuple[HoldoutExample, ...]
    guard: tuple[HoldoutExample, ...]
    duplicates: int
    near_duplicates: int
    dropped_to_protect_holdout: int
    shown: int
    drawable: tuple[HoldoutExample, ...] = ()
    dev_requests: tuple[Example, ...] = ()
    learnt: frozenset[str] = frozenset()


def side_of(normalized: str) -> str:
    """Return `train`, `dev` or `holdout`, which never changes for the same text."""
    position = unit_interval(normalized)
    if position < TRAIN_SHARE:
        return "train"
    return "dev" if position < TRAIN_SHARE + DEV_SHARE else "holdout"


def split_examples(
    examples: Sequence[Example],
    requests: Sequence[Example] = (),
    *,
    max_holdout: int,
    max_dev: int,
    max_train: int,
    shown: Collection[str] = (),
) -> Split:
    """Split examples. Each part, including the holdout, keeps its newest groups up to its limit.

    `requests` are examples whose label is only assumed, so they can be drawn and reviewed, and nothing else. `shown`
    holds queries that a compared program shows to the model. Their sides never change, but a new query on the
    other side may be their near-duplicate. Such a group cannot judge.
    """
    by_query: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_query[normalize_query(example.query)].append(example)
    requested: dict[str, Example] = {}
    for request in sorted(requests, key=lambda request: (request.time, request.span_id)):
        requested[normalize_query(request.query)] = request
    in_demos = {normalize_query(query) for query in shown}
    groups = group_near_duplicates(sorted(in_demos.union(by_query, requested)))
    drawable: list[HoldoutExample] = []
    dev_requests: list[HoldoutExample] = []
    parts: dict[str, list[HoldoutExample]] = {side: [] for side in _SIDES}
    dropped = unfit = used = 0
    for group in groups:
        side, members = _assign_side(group, by_query)
        dropped += sum(len(by_query[query]) for query in group if query in by_query and query not in members)
        used += bool(members)
        if side == "holdout" and in_demos.intersection(group):
            unfit += bool(members)
            continue
        if members:
            best = _representative([example for query in members for example in by_query[query]])
            parts[side].append(HoldoutExample(best, group))
        if asked := [requested[query] for query in group if query in requested]:
            known = parts[side][-1].example if members else None
            latest = max(asked, key=lambda request: (request.time, request.span_id))
            if side == "holdout":
                reviewed = known is not None and known.provenance is Provenance.HUMAN
                drawable.append(HoldoutExample(known if known and reviewed else latest, group))
            elif side == "dev" and (known is None or known.provenance is Provenance.OUTCOME):
                dev_requests.append(HoldoutExample(latest, group))
    return Split(
        train=tuple(judged.example for judged in newest(parts["train"], max_train)),
        dev=tuple(judged.example for judged in newest(parts["dev"], max_dev)),
        holdout=newest([judged for judged in parts["holdout"] if judged.example.independent], max_holdout),
        guard=newest([judged for judged in parts["holdout"] if not judged.example.independent], max_holdout),
        duplicates=len(examples) - len(by_query),
        near_duplicates=len(by_query) - used,
        dropped_to_protect_holdout=dropped,
        shown=unfit,
        drawable=tuple(drawable),
        dev_requests=tuple(judged.example for judged in newest(dev_requests, max_dev)),
        learnt=frozenset(query for judged in (*parts["train"], *parts["dev"], *dev_requests) for query in judged.group),
    )


def draw(
    split: Split, *, seed: str, most: int, usable: Callable[[HoldoutExample], bool] = lambda held_out: True
) -> list[HoldoutExample]:
    """Draw usable groups of the holdout side at random, whatever became of them. The same seed draws the same."""
    left = filter(usable, split.drawable)
    return sorted(left, key=lambda held_out: unit_interval(f"{seed} {held_out.group[0]}"))[:most]


def _assign_side(group: Sequence[str], by_query: Collection[str]) -> tuple[str, list[str]]:
    """Return the side of a group of near-duplicates, and its queries with examples on that side.

    The holdout wins over dev, and dev over train, so a query that judges never has a near-duplicate that trained.
    """
    sides = [side_of(query) for query in group]
    side = max(sides, key=_SIDES.index)
    return side, [query for query, own in zip(group, sides, strict=True) if own == side and query in by_query]


def _representative(examples: Sequence[Example]) -> Example:
    """Return the newest of the best labelled examples; independent labels come first because they can judge."""
    return max(examples, key=lambda e: (e.independent, _RANK[e.provenance], e.time, e.span_id))


def newest(part: Iterable[HoldoutExample], limit: int) -> tuple[HoldoutExample, ...]:
    """Return the newest examples, ordered by a hash of the query, so that time and label do not affect the order."""
    by_age = sorted(part, key=lambda judged: (judged.example.time, judged.group), reverse=True)
    return tuple(sorted(by_age[:limit], key=lambda judged: hashlib.sha256(judged.group[0].encode()).digest()))
