import random
from typing import TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.evaluation.split import Split, side_of, split_examples
from autoopt_pipeline.modules.similarity import NEAR_DUPLICATE, group_near_duplicates, normalize_query, split_words
from autoopt_pipeline.modules.spec import Example, Provenance
from tests.support.sample_decisions import example

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


class Limits(TypedDict):
    max_holdout: int
    max_dev: int
    max_train: int


LIMITS: Limits = {"max_holdout": 1000, "max_dev": 1000, "max_train": 1000}


def held_out(split: Split) -> list[Example]:
    return [judged.example for judged in (*split.holdout, *split.guard)]


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
    judging = [normalize_query(e.query) for e in held_out(split)]
    seen = [normalize_query(e.query) for e in (*split.train, *split.dev)]
    assert all(jaccard(one, other) < NEAR_DUPLICATE for one in judging for other in seen)


@given(examples, st.lists(queries, max_size=6))
def test_nothing_like_what_a_program_shows_to_the_model_judges_it(
    given_examples: list[Example], shown: list[str]
) -> None:
    split = split_examples(given_examples, **LIMITS, shown=shown)
    judging = [normalize_query(e.query) for e in held_out(split)]
    demos = [normalize_query(query) for query in shown]
    assert all(jaccard(one, other) < NEAR_DUPLICATE for one in judging for other in demos)
    without = split_examples(given_examples, **LIMITS)
    assert {normalize_query(e.query) for e in (*split.train, *split.dev)} <= {
        normalize_query(e.query) for e in (*without.train, *without.dev)
    }


def test_a_demo_keeps_its_near_duplicate_out_of_the_holdout_also_when_its_own_trace_is_gone() -> None:
    base = "find the old red report about water in"
    pairs = ((f"{base} city{i}", f"{base} town{i}") for i in range(1000))
    demo, like_it = next(p for p in pairs if [side_of(p[0]), side_of(p[1])] == ["train", "holdout"])
    assert len(held_out(split_examples([example(like_it)], **LIMITS))) == 1
    split = split_examples([example(like_it)], **LIMITS, shown=[demo])
    assert held_out(split) == []
    assert split.shown == 1


@given(examples)
def test_a_held_out_example_knows_all_queries_of_its_group(given_examples: list[Example]) -> None:
    split = split_examples(given_examples, **LIMITS)
    everything = {normalize_query(e.query) for e in given_examples}
    for judged in (*split.holdout, *split.guard):
        assert normalize_query(judged.example.query) in judged.group
        assert set(judged.group) <= everything


@given(examples)
def test_every_query_counts_once(given_examples: list[Example]) -> None:
    split = split_examples(given_examples, **LIMITS)
    used = [normalize_query(e.query) for e in (*split.train, *split.dev, *held_out(split))]
    assert len(used) == len(set(used))


@given(examples, st.integers(0, 10**6))
def test_the_order_of_traces_does_not_matter(given_examples: list[Example], seed: int) -> None:
    distinct = list({(e.query, e.time): e for e in given_examples}.values())
    shuffled = random.Random(seed).sample(distinct, len(distinct))
    assert split_examples(distinct, **LIMITS) == split_examples(shuffled, **LIMITS)


@given(examples)
def test_only_independent_labels_judge(given_examples: list[Example]) -> None:
    split = split_examples(given_examples, **LIMITS)
    assert all(judged.example.independent for judged in split.holdout)
    assert not any(judged.example.independent for judged in split.guard)


@given(examples, examples)
def test_a_query_never_leaves_the_holdout_when_traces_come(old: list[Example], new: list[Example]) -> None:
    before = split_examples(old, **LIMITS)
    after = split_examples(old + new, **LIMITS)
    trained = {normalize_query(e.query) for e in (*after.train, *after.dev)}
    assert not trained & {normalize_query(e.query) for e in held_out(before)}


def test_sides_have_their_shares() -> None:
    sides = [side_of(f"query number {i}") for i in range(20_000)]
    assert sides.count("train") / len(sides) == pytest.approx(0.4, abs=0.02)
    assert sides.count("dev") / len(sides) == pytest.approx(0.2, abs=0.02)


def test_the_better_label_of_a_repeated_query_counts() -> None:
    query = next(f"question {i}" for i in range(100) if side_of(f"question {i}") == "holdout")
    repeated = [
        example(query, "outcome", provenance=Provenance.OUTCOME, independent=False, minute=9),
        example(query, "human", minute=1),
        example(query, "judge", provenance=Provenance.JUDGE, minute=5),
    ]
    split = split_examples(repeated, **LIMITS)
    assert [e.label for e in held_out(split)] == ["human"]
    assert split.duplicates == 2


def test_the_newest_are_kept() -> None:
    many = [example(f"alpha{i} beta{i} gamma{i}", minute=i) for i in range(300)]
    split = split_examples(many, max_holdout=10, max_dev=10, max_train=10)
    assert (len(split.train), len(split.dev), len(split.holdout)) == (10, 10, 10)
    all_of_them = split_examples(many, **LIMITS)
    newest = sorted(held_out(all_of_them), key=lambda e: e.time)[-10:]
    assert sorted(held_out(split), key=lambda e: e.time) == newest


@pytest.mark.parametrize(
    ("query", "normal"),
    [("  Find,the REPORT!! ", "find the report"), ("Straße", "strasse"), ("??", "??"), ("日本 語", "日本 語")],
)
def test_queries_are_normalized(query: str, normal: str) -> None:
    assert normalize_query(query) == normal


@pytest.mark.parametrize(
    ("one", "ending", "another"),
    [
        ("上个季度柏林办公室的销售报告在哪里", "呢", "帮我总结一下昨天会议的录音和会议记录"),
        ("先月のベルリン支店の売上報告書はどこにありますか", "ね", "昨日の会議の録音を要約してください"),
        ("ค้นหารายงานยอดขายของสำนักงานเบอร์ลินเดือนที่แล้ว", "นะ", "ช่วยสรุปการประชุมเมื่อวานให้หน่อย"),
    ],
    ids=["Chinese", "Japanese", "Thai"],
)
def test_near_duplicates_are_found_where_words_are_not_spaced(one: str, ending: str, another: str) -> None:
    alike = tuple(sorted(map(normalize_query, (one, one + ending))))
    assert set(group_near_duplicates(sorted((*alike, normalize_query(another))))) == {
        alike,
        (normalize_query(another),),
    }


def test_long_queries_with_the_same_few_letters_are_not_taken_for_one_another() -> None:
    rng = random.Random(1)
    thai_words = [
        "รายงาน",
        "เอกสาร",
        "ราคา",
        "ยอดขาย",
        "ตาราง",
        "เวลา",
        "ระบบ",
        "ลม",
        "รอ",
        "ผล",
        "แผน",
        "ทาง",
        "ของ",
        "นาย",
    ]
    long = sorted({normalize_query("".join(rng.choices(thai_words, k=30))) for _ in range(60)})
    assert all(len(group) == 1 for group in group_near_duplicates(long))


def test_words_of_unspaced_scripts_are_single_characters() -> None:
    assert split_words(normalize_query("Find 报告 in_the folder")) == ["find", "报", "告", "in_the", "folder"]
