"""What a local router learns, and from which confidence it should answer."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.encoder import open_encoder
from autoopt_pipeline.modules.local_router import BUCKETS, columns_of
from autoopt_pipeline.modules.spec import Label, Provenance
from autoopt_pipeline.optimization.router_training import best_threshold, can_be_routed, train_router
from tests.support.labeled_requests import LABELS, ROUTING, examples
from tests.support.tiny_encoder import tiny_encoder

NAMES = [label.name for label in LABELS]

scored = st.lists(
    st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.9]), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])),
    min_size=1,
    max_size=12,
)


def test_it_learns_what_requests_ask_for_and_knows_how_sure_it_is() -> None:
    train, test = examples(ROUTING, 400, seed=1), examples(ROUTING, 200, seed=2)
    router = train_router(ROUTING, train, seed=9)
    chosen = [router.choose(example.inputs, NAMES) for example in test]
    right = np.array([choice == example.label for (choice, _), example in zip(chosen, test, strict=True)])
    most_frequent = max(sum(example.label == name for example in test) for name in NAMES) / len(test)
    assert right.mean() > most_frequent + 0.2
    assert abs(right.mean() - np.mean([share for _, share in chosen])) < 0.1


def test_the_same_examples_give_the_same_router() -> None:
    first, second = (train_router(ROUTING, examples(ROUTING, 100), seed=9) for _ in range(2))
    assert first.weights.tobytes() == second.weights.tobytes()
    assert (first.temperature, first.bias.tolist()) == (second.temperature, second.bias.tolist())


def test_two_labels_are_enough() -> None:
    two = [example for example in examples(ROUTING, 300) if example.label in NAMES[:2]]
    router = train_router(ROUTING, two, seed=9)
    assert sorted(router.classes) == sorted(NAMES[:2])
    assert sum(router.choose(each.inputs, NAMES)[0] == each.label for each in two) > 0.9 * len(two)


def test_a_better_label_counts_more() -> None:
    shown = examples(ROUTING, 100)
    contested = replace(shown[0], inputs={"query": "zebra"}, right={"agent": NAMES[0]})
    against = replace(contested, right={"agent": NAMES[1]}, provenance=Provenance.OUTCOME)
    router = train_router(ROUTING, [*shown, *[contested, against] * 10], seed=9)
    assert router.choose({"query": "zebra"}, NAMES)[0] == NAMES[0]


def test_with_an_encoder_it_knows_words_that_it_never_learnt_from(tmp_path: Path) -> None:
    shown = [
        replace(example, inputs={"query": word}, right={"agent": name})
        for example in examples(ROUTING, 30)
        for word, name in zip(("film", "song"), NAMES, strict=False)
    ]
    encoder = open_encoder(tiny_encoder(tmp_path, [["film", "movie"], ["song", "tune"]]))
    without, router = train_router(ROUTING, shown, seed=9), train_router(ROUTING, shown, seed=9, encoder=encoder)
    assert [router.choose({"query": word}, NAMES)[0] for word in ("movie", "tune")] == NAMES[:2]
    assert without.choose({"query": "movie"}, NAMES) == without.choose({"query": "tune"}, NAMES)


def test_a_label_that_is_gone_is_never_chosen() -> None:
    router = train_router(ROUTING, examples(ROUTING, 100), seed=9)
    query = {"query": "zebra"}
    first, _ = router.choose(query, NAMES)
    second, share = router.choose(query, set(NAMES) - {first})
    assert second in NAMES
    assert second != first
    assert share < 0.5
    assert router.choose(query, {"another"}) == (None, 0.0)


def test_only_modules_that_choose_one_label_have_a_router() -> None:
    assert can_be_routed(ROUTING, LABELS, examples(ROUTING, 60))
    assert not can_be_routed(ROUTING, LABELS, examples(ROUTING, 40))
    assert not can_be_routed(ROUTING, [Label("other")], examples(ROUTING, 60))
    for name in ("workflow", "unified"):
        assert not can_be_routed(get_module(name), LABELS, examples(get_module(name), 60))


@given(scored)
def test_the_threshold_is_the_one_with_the_highest_score(cases: list[tuple[float, float, float]]) -> None:
    shares, local, model = (list(column) for column in zip(*cases, strict=True))
    chosen = best_threshold(shares, local, model)

    def total(threshold: float) -> float:
        return sum(ours if share >= threshold else theirs for share, ours, theirs in cases)

    best = max(total(threshold) for threshold in (*shares, 2.0))
    assert total(2.0 if chosen is None else chosen) == best
    if chosen is not None:
        assert all(total(lower) < best for lower in shares if lower < chosen)


@given(st.dictionaries(st.sampled_from(["query", "modality", "entities"]), st.text(max_size=3000), max_size=3))
def test_any_text_has_columns(inputs: dict[str, str]) -> None:
    columns = columns_of(inputs)
    assert _is_ascending(columns.tolist())
    assert all(0 <= column < BUCKETS for column in columns)
    assert columns_of(dict(inputs)).tolist() == columns.tolist()


def test_half_a_character_pair_has_columns_too() -> None:
    assert len(columns_of({"query": "\ud83d"}))


def test_the_query_and_other_inputs_are_told_apart() -> None:
    as_query, as_modality = (set(columns_of({name: "video"}).tolist()) for name in ("query", "modality"))
    assert as_query.isdisjoint(as_modality)


def _is_ascending(columns: Sequence[int]) -> bool:
    return all(first < second for first, second in pairwise(columns))
