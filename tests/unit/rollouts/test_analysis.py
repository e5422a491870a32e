"""What two versions that serve side by side tell of each other."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.modules.online_score import LiveOutcome
from autoopt_pipeline.rollouts.analysis import (
    ENOUGH,
    MAX_DECISIONS,
    AnalysisStatus,
    RolloutAnalysis,
    VersionSample,
    analyze_rollout,
    differences,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)
FORTNIGHT = timedelta(days=14)


def outcome(minute: float, score: float, *, after: float = 0.0) -> LiveOutcome:
    """Of a decision in this minute; known some minutes after it."""
    decided_at = AT + timedelta(minutes=minute)
    return LiveOutcome(decided_at + timedelta(minutes=after), decided_at, score)


outcomes = st.lists(
    st.builds(outcome, st.integers(0, 500), st.sampled_from([0.0, 0.5, 1.0])),
    max_size=60,
)


def side(*scores: float, decisions: int | None = None) -> VersionSample:
    """A version whose outcomes became known one a minute."""
    found = tuple(outcome(i, score) for i, score in enumerate(scores))
    return VersionSample(len(found) if decisions is None else decisions, found)


def look(newer: VersionSample, older: VersionSample, *, age: timedelta = timedelta(days=1)) -> RolloutAnalysis:
    return analyze_rollout(newer, older, age=age, longest=FORTNIGHT)


def production(
    rng: random.Random, newer: float, older: float, *, drift: float = 0.0
) -> tuple[VersionSample, VersionSample]:
    """Outcomes of 5000 requests, a tenth of which the older version keeps; verdicts come hours later, in any order."""
    found: tuple[list[LiveOutcome], list[LiveOutcome]] = ([], [])
    for minute in range(5000):
        arm = rng.random() < 0.1
        right = (older if arm else newer) + drift * (minute / 5000 - 0.5)
        found[arm].append(outcome(minute, float(rng.random() < right), after=rng.expovariate(1 / 300)))
    return VersionSample(len(found[0]), tuple(found[0])), VersionSample(len(found[1]), tuple(found[1]))


def first_verdict(newer: VersionSample, older: VersionSample) -> AnalysisStatus:
    """The verdict at the first look that has one, of looks that are ever further apart."""
    minutes = 60.0
    while minutes < 5600:
        now = AT + timedelta(minutes=minutes)
        known = [
            VersionSample(each.decisions, tuple(o for o in each.outcomes if o.known_at <= now))
            for each in (newer, older)
        ]
        found = analyze_rollout(known[0], known[1], age=now - AT, longest=FORTNIGHT)
        if found.status is not AnalysisStatus.OPEN:
            return found.status
        minutes *= 1.25
    return AnalysisStatus.OPEN


def verdicts(newer: float, older: float, *, drift: float = 0.0, rollouts: int = 60) -> Counter[AnalysisStatus]:
    return Counter(first_verdict(*production(random.Random(s), newer, older, drift=drift)) for s in range(rollouts))


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_a_version_that_is_no_worse_is_hardly_ever_rolled_back_however_the_traffic_drifts(drift: float) -> None:
    # At most 5 in 100 by design; 60 rollouts with more than 7 would be one chance in 100.
    assert verdicts(0.7, 0.7, drift=drift)[AnalysisStatus.WORSE] <= 7


def test_a_version_that_is_20_points_worse_is_always_found_out() -> None:
    assert verdicts(0.6, 0.8)[AnalysisStatus.WORSE] == 60


def test_a_version_that_is_better_is_never_rolled_back_and_soon_left_alone() -> None:
    found = verdicts(0.9, 0.75)
    assert found[AnalysisStatus.WORSE] == 0
    assert found[AnalysisStatus.BETTER] >= 57


def test_traffic_that_grows_hard_is_blamed_on_no_version() -> None:
    """Compared one by one from the start, the few outcomes of the older version would be the early, easy ones."""
    hard = tuple(outcome(m, float(m < 1000)) for m in range(2000))
    few = tuple(outcome(m + 0.5, float(m < 1000)) for m in range(0, 2000, 10))
    found = look(VersionSample(2000, hard), VersionSample(200, few))
    assert found.p_worse > 0.5
    assert found.comparisons == pytest.approx(200, abs=2)


@given(outcomes, outcomes)
def test_a_difference_is_at_most_one_and_the_sides_are_interchangeable(
    one: list[LiveOutcome], other: list[LiveOutcome]
) -> None:
    found = differences(one, other)
    assert all(-1 <= difference <= 1 for difference in found)
    assert len(found) <= min(len(one), len(other))
    if len({o.known_at for o in [*one, *other]}) == len(one) + len(other):  # else it is open who came first
        assert [-difference for difference in differences(other, one)] == found


@given(outcomes)
def test_one_outcome_after_the_other_is_compared_one_by_one(one: list[LiveOutcome]) -> None:
    ordered = sorted(one, key=lambda o: o.known_at)
    alternating = [outcome(2 * i, o.score) for i, o in enumerate(ordered)]
    later = [outcome(2 * i + 1, 0.5) for i in range(len(ordered))]
    found = differences(alternating, later)
    assert found == [o.score - 0.5 for o in ordered]


def test_verdicts_that_are_stored_at_once_are_compared_in_the_order_of_their_decisions() -> None:
    one = [outcome(2 * i, 1.0, after=500 - 2 * i) for i in range(100)]
    other = [outcome(2 * i + 1, 0.0, after=499 - 2 * i) for i in range(100)]
    assert differences(one, other) == [1.0] * 100


def test_without_outcomes_of_both_nothing_is_said() -> None:
    found = look(side(*[0.0] * 300), side())
    assert (found.status, found.comparisons, found.p_worse) == (AnalysisStatus.OPEN, 0, 1.0)
    assert "300 outcomes of 300 decisions, on average 0.0 %" in found.reason
    assert "0 outcomes of 0 decisions" in found.reason


@pytest.mark.parametrize(
    ("newer", "older", "age", "reason"),
    [
        (side(*[1.0] * ENOUGH), side(*[1.0] * ENOUGH), timedelta(days=1), "enough, and not clearly worse"),
        (side(decisions=MAX_DECISIONS), side(), timedelta(days=1), "enough, and not clearly worse"),
        (side(1.0), side(1.0), FORTNIGHT, "not clearly worse after 14 days"),
    ],
)
def test_a_watch_ends_when_it_has_seen_enough_or_for_long_enough(
    newer: VersionSample, older: VersionSample, age: timedelta, reason: str
) -> None:
    found = look(newer, older, age=age)
    assert found.status is AnalysisStatus.NOT_WORSE
    assert found.reason.startswith(reason)


def test_a_clear_loss_outranks_every_other_end() -> None:
    found = look(side(*[0.0] * ENOUGH), side(*[1.0] * ENOUGH), age=FORTNIGHT)
    assert found.status is AnalysisStatus.WORSE


@given(outcomes)
def test_a_score_is_the_mean_outcome(found: list[LiveOutcome]) -> None:
    score = VersionSample(len(found), tuple(found)).score
    assert score == (fmean(o.score for o in found) if found else None)
