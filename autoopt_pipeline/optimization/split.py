"""Which examples train, which choose among candidates, and which judge.

The side of a query is a permanent hash of its normalized text, so a query never wanders from the holdout into
training when new traces come. Near-duplicates form a group that stands on one side only.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from autoopt_pipeline.modules.spec import Example, Provenance

TRAIN_SHARE, DEV_SHARE = 0.4, 0.2
"""Shares of queries that train and choose; the rest, 40 %, is the holdout: judging needs the most data."""

NEAR_DUPLICATE = 0.8
"""Least Jaccard similarity of two queries' word sets at which they count as one (5 of 6 words shared)."""

_RANK = {Provenance.HUMAN: 2, Provenance.JUDGE: 1, Provenance.OUTCOME: 0}
_SIDES = ("train", "dev", "holdout")


@dataclass(frozen=True)
class Split:
    """Examples by use, each query once, in an order that does not depend on the order of traces.

    `holdout` has independent labels and judges gain. `guard` are the holdout's other examples: their labels
    may be the incumbent's own answers, so they can only show a loss.
    """

    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    holdout: tuple[Example, ...]
    guard: tuple[Example, ...]
    duplicates: int
    near_duplicates: int
    dropped_to_protect_holdout: int


def normalize_query(query: str) -> str:
    """The query's words in lower case, without punctuation, accents kept, numbers as they are."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", query).casefold())) or query.strip()


def side_of(normalized: str) -> str:
    """`train`, `dev` or `holdout`, for ever the same for the same text."""
    position = int.from_bytes(hashlib.sha256(normalized.encode()).digest()[:8]) / 2**64
    if position < TRAIN_SHARE:
        return "train"
    return "dev" if position < TRAIN_SHARE + DEV_SHARE else "holdout"


def split_examples(examples: Sequence[Example], *, max_holdout: int, max_dev: int, max_train: int) -> Split:
    """Divide examples. The holdout, like the other parts, is the newest groups up to its limit."""
    by_query: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_query[normalize_query(example.query)].append(example)
    queries = sorted(by_query)
    groups = group_near_duplicates(queries)
    parts: dict[str, list[tuple[Example, str]]] = {side: [] for side in _SIDES}
    dropped = 0
    for group in groups:
        sides = [side_of(query) for query in group]
        side = max(sides, key=_SIDES.index)
        members = [query for query, own in zip(group, sides, strict=True) if own == side]
        dropped += sum(len(by_query[query]) for query in group if query not in members)
        best = _representative([example for query in members for example in by_query[query]])
        parts[side].append((best, group[0]))
    judging = [(example, query) for example, query in parts["holdout"] if example.independent]
    guarding = [(example, query) for example, query in parts["holdout"] if not example.independent]
    return Split(
        train=_newest(parts["train"], max_train),
        dev=_newest(parts["dev"], max_dev),
        holdout=_newest(judging, max_holdout),
        guard=_newest(guarding, max_holdout),
        duplicates=len(examples) - len(queries),
        near_duplicates=len(queries) - len(groups),
        dropped_to_protect_holdout=dropped,
    )


def group_near_duplicates(queries: Sequence[str]) -> list[tuple[str, ...]]:
    """Group normalized queries that are alike, transitively; groups and members sorted.

    Exact: two sets with Jaccard similarity of at least t share one of their ⌊(1-t)·n⌋+1 rarest words (prefix
    filtering; Chaudhuri et al., ICDE 2006), so only pairs that share such a word are compared.
    """
    words = {query: frozenset(query.split()) for query in queries}
    frequency = Counter(word for own in words.values() for word in own)
    parent = {query: query for query in queries}

    def root(query: str) -> str:
        while parent[query] != query:
            parent[query] = parent[parent[query]]
            query = parent[query]
        return query

    seen_under: dict[str, list[str]] = defaultdict(list)
    for query in sorted(queries, key=lambda q: (len(words[q]), q)):
        own = words[query]
        rare_first = sorted(own, key=lambda word: (frequency[word], word))
        prefix = rare_first[: int((1 - NEAR_DUPLICATE) * len(own) + 1e-9) + 1]
        for other in {candidate for word in prefix for candidate in seen_under[word]}:
            theirs = words[other]
            if len(theirs) >= NEAR_DUPLICATE * len(own) and root(other) != root(query):
                shared = len(own & theirs)
                if shared >= NEAR_DUPLICATE * (len(own) + len(theirs) - shared):
                    first, second = sorted((root(query), root(other)))
                    parent[second] = first
        for word in prefix:
            seen_under[word].append(query)
    groups: dict[str, list[str]] = defaultdict(list)
    for query in queries:
        groups[root(query)].append(query)
    return sorted(tuple(sorted(group)) for group in groups.values())


def _representative(examples: Sequence[Example]) -> Example:
    """The best labelled of a group, the newest of those; independent labels first, for they can judge."""
    return max(examples, key=lambda e: (e.independent, _RANK[e.provenance], e.time, e.span_id))


def _newest(part: Sequence[tuple[Example, str]], limit: int) -> tuple[Example, ...]:
    """The newest examples, ordered by a hash of the query: an order that says nothing of time or label."""
    by_age = sorted(part, key=lambda pair: (pair[0].time, pair[1]), reverse=True)
    by_hash = sorted(by_age[:limit], key=lambda pair: hashlib.sha256(pair[1].encode()).digest())
    return tuple(example for example, _ in by_hash)
