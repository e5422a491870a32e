"""The detector of falls, on simulated outcomes with fixed seeds. The benchmark has the same on a larger scale."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autoopt_pipeline.evaluation.change_detector import (
    LEARN,
    MAX_GROUPS,
    OTHER_GROUPS,
    ChangeDetector,
    Fall,
    Outcome,
    count_of,
    detect,
)

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


def scores(rng: random.Random, count: int, quality: float) -> list[float]:
    return [float(rng.random() < quality) for _ in range(count)]


def outcomes(values: Sequence[float], per_day: int = 100, first_day: int = 0) -> list[Outcome]:
    """The outcomes of some days, evenly spread over each."""
    return [Outcome(BEGIN + timedelta(days=first_day + i / per_day), value) for i, value in enumerate(values)]


def falls(values: Sequence[float], *, per_day: int = 100, days: float = 365) -> tuple[Fall, ...]:
    return detect(ChangeDetector(), outcomes(values, per_day), false_alarm_days=days)[1]


def test_false_alarms_are_no_more_frequent_than_stated() -> None:
    """30 years with a false alarm in 30 days at most: 365 in all, of which chance may make some tens more."""
    found = [len(falls(scores(random.Random(seed), 365 * 20, 0.8), per_day=20, days=30)) for seed in range(30)]
    assert 0 < sum(found) < 365


def test_days_that_differ_by_themselves_are_not_taken_for_falls() -> None:
    def year(seed: int) -> list[float]:
        rng = random.Random(seed)
        days = [min(1.0, rng.gauss(0.8, 0.04)) for _ in range(365)]
        return [value for quality in days for value in scores(rng, 100, quality)]

    assert sum(len(falls(year(seed))) for seed in range(8)) <= 16


@pytest.mark.parametrize(("loss", "within"), [(0.1, 300), (0.05, 1000)])
def test_a_fall_is_found_soon_and_dated(loss: float, within: int) -> None:
    waits, dated = [], []
    for seed in range(15):
        rng = random.Random(seed)
        found = falls(scores(rng, 3000, 0.8) + scores(rng, 3000, 0.8 - loss))
        wait = (found[0].at - BEGIN - timedelta(days=30)) / timedelta(days=0.01)
        if wait >= 0:
            waits.append(wait)
            dated.append(abs((found[0].since - BEGIN - timedelta(days=30)) / timedelta(days=1)))
    assert len(waits) >= 12
    assert median(waits) <= within
    assert median(dated) <= 3


def test_the_levels_of_a_fall_are_those_before_and_after_it() -> None:
    found = []
    for seed in range(15):
        rng = random.Random(seed)
        found += falls(scores(rng, 3000, 0.85) + scores(rng, 1000, 0.75))[:1]
    assert median(fall.before for fall in found) == pytest.approx(0.85, abs=0.01)
    assert median(fall.after for fall in found) == pytest.approx(0.75, abs=0.06)
    assert all(fall.outcomes == count_of(fall.later) for fall in found)


def test_after_an_alarm_the_new_level_is_the_reference() -> None:
    rng = random.Random(3)
    detector, found = detect(
        ChangeDetector(), outcomes(scores(rng, 3000, 0.9) + scores(rng, 3000, 0.6)), false_alarm_days=3650
    )
    assert len(found) == 1
    groups = detector.outcomes[""]
    assert sum(level.total for level in groups.values()) / count_of(detector.outcomes) == pytest.approx(0.6, abs=0.05)


def test_a_rise_is_no_alarm_and_neither_are_steady_scores() -> None:
    rng = random.Random(1)
    assert falls(scores(rng, 3000, 0.7) + scores(rng, 3000, 0.9)) == ()
    assert falls([1.0] * 20_000, per_day=20) == ()
    assert falls([0.0] * 5000) == ()
    assert falls([0.5] * 5000) == ()


def test_nothing_is_bet_before_the_level_is_known() -> None:
    detector, found = detect(ChangeDetector(), outcomes([1.0] * (LEARN - 1) + [0.0]), false_alarm_days=1)
    assert found == ()
    assert sum(detector.wealth) == 0


def test_a_source_that_scores_lower_is_no_fall_when_more_of_it_comes() -> None:
    """People are stricter than what the application says of itself. Each is compared with its own past."""
    rng = random.Random(1)

    def mixed(count: int, people: float) -> list[Outcome]:
        found = []
        for i in range(count):
            by_people = rng.random() < people
            right = float(rng.random() < (0.6 if by_people else 0.95))
            found.append(Outcome(BEGIN + timedelta(days=i / 100), right, "human" if by_people else "outcome"))
        return found

    before, after = mixed(4000, 0.1), mixed(2000, 0.8)
    later = [Outcome(each.at + timedelta(days=40), each.score, each.source) for each in after]
    assert detect(ChangeDetector(), [*before, *later], false_alarm_days=365)[1] == ()
    pooled = [Outcome(each.at, each.score) for each in [*before, *later]]
    assert detect(ChangeDetector(), pooled, false_alarm_days=365)[1] != ()


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 400))
def test_it_does_not_matter_how_often_one_checks(seed: int, batch: int) -> None:
    rng = random.Random(seed)
    arrived = outcomes(scores(rng, 600, 0.8) + scores(rng, 200, 0.4))
    whole = detect(ChangeDetector(), arrived, false_alarm_days=30)
    detector, found = ChangeDetector(), tuple[Fall, ...]()
    for some in (arrived[first : first + batch] for first in range(0, len(arrived), batch)):
        stored = detector.model_dump_json()
        detector, new = detect(ChangeDetector.model_validate_json(stored), some, false_alarm_days=30)
        found += new
    assert (detector, found) == whole


def test_the_state_does_not_grow() -> None:
    rng = random.Random(1)
    arrived = [
        Outcome(BEGIN + timedelta(days=i / 100), float(rng.random() < 0.8), group=f"class {i % 500}")
        for i in range(20_000)
    ]
    detector, _ = detect(ChangeDetector(), arrived, false_alarm_days=365)
    assert OTHER_GROUPS in detector.outcomes[""]
    assert len(detector.outcomes[""]) == MAX_GROUPS + 1
    assert len(detector.model_dump_json()) < 30_000


@pytest.mark.parametrize(
    "damage",
    [
        {"wealth": [1.0]},
        {"runs": [{"wealth": -1.0}] * 5},
        {"gap": float("nan")},
        {"runs": [{"since": BEGIN}] * 5},
        {"runs": [{"since": BEGIN, "later": {"human": {"a": {"count": 1, "total": 1, "squares": 1}}}}] * 5},
        {"unknown": 1},
    ],
)
def test_a_state_that_cannot_be_is_refused(damage: dict) -> None:
    with pytest.raises(ValidationError):
        ChangeDetector.model_validate({**ChangeDetector().model_dump(), **damage})
