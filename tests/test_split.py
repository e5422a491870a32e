import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.modules.spec import Example, Provenance
from autoopt_pipeline.optimization.split import (
    NEAR_DUPLICATE,
    group_near_duplicates,
    normalize_query,
    side_of,
    split_examples,
)
from tests.examples import example

words = st.sampled_from(["find", "the", "old", "red", "report", "about", "water", "and", "send", "it", "berlin"])
queries = st.lists(words, min_size=1, max_size=9).map(" ".join)
examples = st.lists(
    st.builds(
        example,
        queries,
        st.sampled_from("abc"),
        provenance=st.sampled_from(Provenance),
        independent=st.booleans(),
        minute=st.integers(0, 1000),
    ),
    max_size=60,
)
LIMITS = {"max_holdout": 1000, "max_dev": 1000, "max_train": 1000}


def jaccard(one: str, other: str) -> float:
    a, b = set(one.split()), set(other.split())
    return len(a & b) / len(a | b)


@given(st.lists(queries.map(normalize_query), unique=True, max_size=40))
def test_grouping_finds_every_near_duplicate_and_nothing_else(normalized: list[str]) -> None:
    groups = group_near_duplicates(normalized)
    assert sorted(query for group in groups for query in group) == sorted(normalized)
    group_of = {query: i for i, group in enumerate(groups) for query in group}
    for one in normalized:
        for other in normalized:
            if jaccard(one, other) >= NEAR_DUPLICATE:
                assert group_of[one] == group_of[other]
    for group in groups:  # every member is reached over near-duplicates
        reached, frontier = {group[0]}, [group[0]]
        while frontier:
            here = frontier.pop()
            near = [query for query in group if query not in reached and jaccard(here, query) >= NEAR_DUPLICATE]
            reached.update(near)
            frontier += near
        assert reached == set(group)


@given(examples)
def test_no_held_out_query_or_near_duplicate_of_one_is_trained_on(given_examples: list[Example]) -> None:
    split = split_examples(given_examples, **LIMITS)
    held_out = [normalize_query(e.query) for e in (*split.holdout, *split.guard)]
    seen = [normalize_query(e.query) for e in (*split.train, *split.dev)]
    assert all(jaccard(one, other) < NEAR_DUPLICATE for one in held_out for other in seen)


@given(examples)
def test_every_query_counts_once(given_examples: list[Example]) -> None:
    split = split_examples(given_examples, **LIMITS)
    used = [normalize_query(e.query) for part in (split.train, split.dev, split.holdout, split.guard) for e in part]
    assert len(used) == len(set(used))


@given(examples, st.integers(0, 10**6))
def test_the_order_of_traces_does_not_matter(given_examples: list[Example], seed: int) -> None:
    distinct = list({(e.query, e.time): e for e in given_examples}.values())
    shuffled = random.Random(seed).sample(distinct, len(distinct))
    assert split_examples(distinct, **LIMITS) == split_examples(shuffled, **LIMITS)


@given(examples)
def test_only_independent_labels_judge(given_examples: list[Example]) -> None:
    split = split_examples(given_examples, **LIMITS)
    assert all(e.independent for e in split.holdout)
    assert not any(e.independent for e in split.guard)


@given(examples, examples)
def test_a_query_never_leaves_the_holdout_when_traces_come(old: list[Example], new: list[Example]) -> None:
    before = split_examples(old, **LIMITS)
    after = split_examples(old + new, **LIMITS)
    trained = {normalize_query(e.query) for e in (*after.train, *after.dev)}
    assert not trained & {normalize_query(e.query) for e in (*before.holdout, *before.guard)}


def test_sides_have_their_shares() -> None:
    sides = [side_of(f"query number {i}") for i in range(20_000)]
    assert sides.count("train") / len(sides) == pytest.approx(0.4, abs=0.02)
    assert sides.count("dev") / len(sides) == pytest.approx(0.2, abs=0.02)


def test_the_better_label_of_a_repeated_query_counts() -> None:
    held_out = next(f"question {i}" for i in range(100) if side_of(f"question {i}") == "holdout")
    repeated = [
        example(held_out, "outcome", provenance=Provenance.OUTCOME, independent=False, minute=9),
        example(held_out, "human", minute=1),
        example(held_out, "judge", provenance=Provenance.JUDGE, minute=5),
    ]
    split = split_examples(repeated, **LIMITS)
    assert [e.label for e in split.holdout] == ["human"]
    assert split.duplicates == 2


def test_the_newest_are_kept() -> None:
    many = [example(f"alpha{i} beta{i} gamma{i}", minute=i) for i in range(300)]
    split = split_examples(many, max_holdout=10, max_dev=10, max_train=10)
    assert (len(split.train), len(split.dev), len(split.holdout)) == (10, 10, 10)
    all_of_them = split_examples(many, **LIMITS)
    newest = sorted(all_of_them.holdout, key=lambda e: e.time)[-10:]
    assert sorted(split.holdout, key=lambda e: e.time) == newest


@pytest.mark.parametrize(
    ("query", "normal"),
    [("  Find,the REPORT!! ", "find the report"), ("Straße", "strasse"), ("??", "??"), ("日本 語", "日本 語")],
)
def test_queries_are_normalized(query: str, normal: str) -> None:
    assert normalize_query(query) == normal
