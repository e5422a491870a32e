"""The race by itself, with scores that are known beforehand and no model."""

import contextlib
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoopt_pipeline.optimization.racing import MIN_RUNG, Contestant, Race, balanced, clearly_behind, rungs

Scores = dict[str, list[float]]


class Answers:
    """Scores by entrant, and what was asked of whom."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.asked: Counter[tuple[str, int]] = Counter()

    def __call__(self, entrant: Contestant[None], first: int, stop: int) -> list[float]:
        self.asked.update((entrant.key, number) for number in range(first, stop))
        return self.scores[entrant.key][first:stop]


def entrant(key: str, name: str | None = None) -> Contestant[None]:
    return Contestant(name or key, key, None)


def raced(scores: Scores, *heats: list[str]) -> tuple[Race[None], Answers]:
    """The race of the `incumbent` with the others, heat by heat."""
    answers = Answers(scores)
    race = Race(len(scores["incumbent"]), answers, entrant("incumbent"))
    race.start()
    for heat in heats:
        race.run(entrant(key) for key in heat)
    return race, answers


shares = st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def fields(draw: st.DrawFn) -> tuple[Scores, list[list[str]]]:
    size = draw(st.integers(1, 130))
    heats = [
        [f"{number}-{place}" for place in range(draw(st.integers(0, 8)))] for number in range(draw(st.integers(0, 3)))
    ]
    rng = random.Random(draw(st.integers(0, 10**6)))
    names = ["incumbent", *(key for heat in heats for key in heat)]
    return {key: [rng.choice([0.0, 0.5, 1.0]) for _ in range(size)] for key in names}, heats


@given(fields())
def test_nobody_is_asked_an_example_twice_and_the_calls_are_bounded(field: tuple[Scores, list[list[str]]]) -> None:
    scores, heats = field
    race, answers = raced(scores, *heats)
    assert set(answers.asked.values()) <= {1}
    size = len(scores["incumbent"])
    bound = size
    for heat in heats:
        left = len(heat)
        for before, rung in zip([0, *rungs(size)], rungs(size), strict=False):
            bound += left * (rung - before)
            left = math.ceil(left / 2)
    assert answers.asked.total() <= bound
    assert [entry.entrant.key for entry in race.entries] == [key for heat in heats for key in heat]


@given(fields())
def test_the_leader_was_asked_everything_and_beats_the_incumbent_or_is_it(
    field: tuple[Scores, list[list[str]]],
) -> None:
    scores, heats = field
    race, _ = raced(scores, *heats)
    leader = race.leader
    assert leader.scores == scores[leader.entrant.key]
    assert leader is race.incumbent or leader.mean() > race.incumbent.mean()
    finished = [
        race.incumbent,
        *(entry for entry in race.entries if len(entry.scores) == len(leader.scores)),
    ]
    assert leader.mean() == max(entry.mean() for entry in finished)


@given(fields(), st.data())
def test_who_is_never_worse_on_any_example_wins(field: tuple[Scores, list[list[str]]], data: st.DataObject) -> None:
    scores, heats = field
    keys = [key for heat in heats for key in heat]
    if not keys:
        return
    best = data.draw(st.sampled_from(keys))
    scores[best] = [max(column) for column in zip(*scores.values(), strict=True)]
    race, _ = raced(scores, *heats)
    assert race.leader.mean() == sum(scores[best]) / len(scores[best])


@pytest.mark.parametrize("place", [0, 3, 7])
def test_who_is_best_by_a_wide_margin_is_hardly_ever_dropped(place: int) -> None:
    rng = random.Random(place)
    won = 0
    for _ in range(200):
        chances = [0.5] * 8
        chances[place] = 0.8
        scores = {
            str(number): [float(rng.random() < chance) for _ in range(100)] for number, chance in enumerate(chances)
        }
        scores["incumbent"] = [float(rng.random() < 0.5) for _ in range(100)]
        race, _ = raced(scores, [str(number) for number in range(8)])
        won += race.leader.entrant.key == str(place)
    assert won >= 198


def test_of_equals_the_one_that_came_first_wins_and_the_incumbent_before_all() -> None:
    better, same = [1.0] * 100, [0.5] * 100
    race, _ = raced({"incumbent": same, "first": better, "second": better}, ["first"], ["second"])
    assert race.leader.entrant.key == "first"
    race, _ = raced({"incumbent": same, "first": same, "second": same}, ["first", "second"])
    assert race.leader is race.incumbent


def test_the_same_program_under_another_name_is_not_asked_at_all() -> None:
    answers = Answers({"incumbent": [0.0] * 40, "a": [1.0] * 40})
    race = Race(40, answers, entrant("incumbent"))
    race.start()
    race.run([entrant("a"), entrant("a", "a again"), entrant("incumbent", "what serves already")])
    assert answers.asked.total() == 80
    assert [repeat.name for repeat in race.repeats] == ["a again", "what serves already"]


def test_who_is_clearly_behind_the_champion_is_dropped_at_the_first_rung() -> None:
    race, _ = raced({"incumbent": [0.5] * 100, "good": [1.0] * 100, "bad": [0.0] * 100}, ["good"], ["bad"])
    _, bad = race.entries
    assert bad.dropped
    assert len(bad.scores) == 25


@pytest.mark.parametrize(
    ("allowed", "leader", "asked"),
    [(124, "incumbent", 100), (125, "good", 25), (200, "good", 100), (299, "good", 100), (300, "better", 100)],
)
def test_an_end_in_the_middle_leaves_the_best_so_far(allowed: int, leader: str, asked: int) -> None:
    class SpentError(BaseException):
        pass

    answers = Answers({"incumbent": [0.5] * 100, "good": [0.75] * 100, "better": [1.0] * 100})

    def score(who: Contestant[None], first: int, stop: int) -> list[float]:
        if answers.asked.total() + stop - first > allowed:
            raise SpentError
        return answers(who, first, stop)

    race = Race(100, score, entrant("incumbent"))
    race.start()
    with contextlib.suppress(SpentError):
        race.run([entrant("good")])
        race.run([entrant("better")])
    assert (race.leader.entrant.key, len(race.leader.scores)) == (leader, asked)


def test_clearly_behind_is_five_to_none_and_seven_to_one() -> None:
    def behind(lost: int, won: int) -> bool:
        own = [0.0] * lost + [1.0] * won + [1.0] * 10
        best = [1.0] * lost + [0.0] * won + [1.0] * 10
        return clearly_behind(own, best)

    assert [behind(4, 0), behind(5, 0), behind(6, 1), behind(7, 1)] == [False, True, False, True]
    assert not behind(0, 0)


@given(st.integers(1, 3000))
def test_rungs_grow_to_the_whole_and_none_is_too_short_to_drop_anybody(size: int) -> None:
    found = rungs(size)
    assert found == sorted(set(found))
    assert found[-1] == size
    assert all(rung >= MIN_RUNG for rung in found[:-1])


@settings(max_examples=50)
@given(st.lists(st.sampled_from("aaaabbc"), min_size=1, max_size=120), st.data())
def test_every_prefix_has_about_the_labels_of_the_whole(labels: list[str], data: st.DataObject) -> None:
    items = [f"{label}{number}" for number, label in enumerate(labels)]
    ordered = balanced(items, lambda item: item[0])
    assert sorted(ordered) == sorted(items)
    upto = data.draw(st.integers(1, len(items)))
    whole, prefix = Counter(labels), Counter(item[0] for item in ordered[:upto])
    for label, count in whole.items():
        expected = upto * count / len(items)
        assert abs(prefix[label] - expected) <= 1 + len(whole) * count / len(items)


def test_rare_labels_do_not_all_stand_in_the_same_place() -> None:
    ordered = balanced([f"rare {number}" for number in range(40)] + ["common"] * 60, str)
    assert 4 <= sum(item.startswith("rare") for item in ordered[:25]) <= 16
