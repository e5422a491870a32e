import math
import random
from itertools import product
from math import comb
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.evaluation.statistics import (
    POWER,
    cases_needed,
    gain_detectable,
    log_e_value,
    power,
    sign_flip_p,
    spread,
)

on_grid = st.integers(-100, 100).map(lambda step: step / 100)
differences = st.lists(on_grid, max_size=60)
alphas = st.floats(1e-6, 0.2)


def answers(fixed: int, broken: int, same: int = 0) -> list[float]:
    return [1.0] * fixed + [-1.0] * broken + [0.0] * same


def mcnemar_mid_p(fixed: int, broken: int) -> float:
    n = fixed + broken
    above = sum(comb(n, k) for k in range(fixed + 1, n + 1))
    return (above + comb(n, fixed) / 2) / 2**n


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_for_right_and_wrong_answers_the_test_is_mid_p_mcnemar(fixed: int, broken: int, same: int) -> None:
    assert sign_flip_p(answers(fixed, broken, same)) == pytest.approx(mcnemar_mid_p(fixed, broken))


@given(st.lists(on_grid, max_size=9))
def test_p_is_the_share_of_sign_flips_that_do_better_and_half_of_those_that_do_as_well(given: list[float]) -> None:
    steps = [round(100 * d) for d in given]
    sums = [sum(sign * step for sign, step in zip(signs, steps, strict=True)) for signs in signs_of(len(steps))]
    better = sum(total > sum(steps) for total in sums) + sum(total == sum(steps) for total in sums) / 2
    assert sign_flip_p(given) == pytest.approx(better / len(sums))


def signs_of(n: int) -> list[tuple[int, ...]]:
    return list(product((1, -1), repeat=n))


@given(differences)
def test_p_is_a_chance_and_never_zero(given: list[float]) -> None:
    assert 0 < sign_flip_p(given) <= 1


@given(differences)
def test_p_of_the_two_directions_adds_up_to_one(given: list[float]) -> None:
    assert sign_flip_p(given) + sign_flip_p([-d for d in given]) == pytest.approx(1)


@given(st.lists(on_grid, min_size=1, max_size=60), st.data())
def test_a_better_answer_is_never_weaker_proof(given: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(given) - 1))
    raised = data.draw(st.integers(round(100 * given[place]), 100)) / 100
    better = [*given[:place], raised, *given[place + 1 :]]
    assert sign_flip_p(better) <= sign_flip_p(given)
    assert log_e_value(better) >= log_e_value(given) - 1e-9


@given(differences, st.randoms(use_true_random=False))
def test_the_order_of_cases_does_not_matter(given: list[float], rng: random.Random) -> None:
    shuffled = rng.sample(given, len(given))
    assert sign_flip_p(shuffled) == sign_flip_p(given)
    assert log_e_value(shuffled) == pytest.approx(log_e_value(given))


def test_a_full_holdout_of_partial_scores_stays_exact() -> None:
    three_hundred = [0.25, -0.33, 0.67, 0.5, -0.5, -0.37] * 50
    assert sign_flip_p(three_hundred) + sign_flip_p([-d for d in three_hundred]) == pytest.approx(1)
    normal = NormalDist().cdf(-sum(three_hundred) / math.sqrt(sum(d * d for d in three_hundred)))
    assert sign_flip_p(three_hundred) == pytest.approx(normal, rel=0.02)


@given(st.integers(0, 500))
def test_equal_answers_are_no_evidence(n: int) -> None:
    assert log_e_value([0.0] * n) == pytest.approx(0, abs=1e-12)


@given(st.lists(on_grid, max_size=9))
def test_evidence_is_expected_to_stay_at_one_when_signs_are_fair(given: list[float]) -> None:
    flips = signs_of(len(given))
    mean = sum(math.exp(log_e_value([s * d for s, d in zip(f, given, strict=True)])) for f in flips) / len(flips)
    assert mean == pytest.approx(1)


@pytest.mark.parametrize(("fixed", "broken"), [(10, 2), (30, 10), (60, 40), (5, 20)])
def test_evidence_is_near_that_of_the_beta_mixture(fixed: int, broken: int) -> None:
    steps = 20_000
    mixture = [
        (1 + bet) ** fixed * (1 - bet) ** broken for bet in ((k + 0.5) / steps for k in range(steps))
    ]  # 2 Beta(fixed + 1, broken + 1) I(1/2, 1) 2^(fixed + broken), as an integral over the bets
    assert log_e_value(answers(fixed, broken)) == pytest.approx(math.log(sum(mixture) / steps), abs=0.05)


def test_evidence_of_many_cases_does_not_overflow() -> None:
    assert log_e_value(answers(5000, 0)) > 3000
    assert log_e_value(answers(0, 5000)) < -100


def test_a_worse_candidate_hardly_ever_reaches_the_bound_however_often_one_looks() -> None:
    rng = random.Random(7)
    reached = 0
    for _ in range(300):
        seen: list[float] = []
        for _ in range(20):
            seen += rng.choices([1.0, -1.0, 0.5, -0.5, 0.0], [5, 5, 5, 5, 80], k=20)
            if log_e_value(seen) >= math.log(1 / 0.05):
                reached += 1
                break
    assert reached / 300 <= 0.05


@pytest.mark.parametrize("alpha", [0.05, 0.019, 0.005, 0.001])
@pytest.mark.parametrize(
    ("gain", "broken"), [(0.05, 0.02), (0.05, 0.05), (0.05, 0.10), (0.08, 0.05), (0.15, 0.02), (0.15, 0.10)]
)
def test_as_many_cases_as_are_said_to_be_needed_show_the_gain_four_times_in_five(
    gain: float, broken: float, alpha: float
) -> None:
    rng = random.Random(f"{gain} {broken} {alpha}")
    n = cases_needed(gain, alpha, spread=gain + 2 * broken)
    weights = [gain + broken, broken, 1 - gain - 2 * broken]
    tries = 1000
    seen = sum(sign_flip_p(rng.choices([1.0, -1.0, 0.0], weights, k=n)) <= alpha for _ in range(tries))
    # With few discordant cases p transitions in steps, so the chance cannot be met exactly; it errs to too many cases.
    assert POWER - 0.05 <= seen / tries <= POWER + 0.1


def test_the_cases_needed_hold_for_partial_scores_too() -> None:
    rng = random.Random(3)
    values, weights = [1.0, 0.5, 0.25, -0.5, -0.25, 0.0], [5, 10, 10, 8, 7, 60]
    mean = sum(v * w for v, w in zip(values, weights, strict=True)) / 100
    square = sum(v * v * w for v, w in zip(values, weights, strict=True)) / 100
    n = cases_needed(mean, 0.01, square)
    seen = sum(sign_flip_p(rng.choices(values, weights, k=n)) <= 0.01 for _ in range(400))
    assert seen / 400 == pytest.approx(POWER, abs=0.07)


@given(st.integers(20, 2000), alphas, st.floats(0, 1))
def test_the_smallest_gain_is_the_first_for_which_the_cases_suffice(n: int, alpha: float, seen: float) -> None:
    gain = gain_detectable(n, alpha, seen)
    assert gain == 1 or cases_needed(gain, alpha, seen) <= n
    assert gain <= 0.001 or cases_needed(gain - 0.001, alpha, seen) > n


@given(st.floats(0.01, 0.5), st.floats(0.01, 0.5), alphas, st.floats(0, 1))
def test_a_larger_gain_never_needs_more_cases(one: float, other: float, alpha: float, seen: float) -> None:
    small, large = sorted((one, other))
    assert cases_needed(large, alpha, seen) <= cases_needed(small, alpha, seen)


def test_the_power_is_said_in_words() -> None:
    seen = answers(11, 6, 103)
    assert spread(seen) == pytest.approx(17 / 120)
    assert str(power(seen, gain=0.05, alpha=0.0076)) == (
        "to see +5 points you need about 603 held-out traces at alpha 0.0076; you have 120, enough for +12"
    )
