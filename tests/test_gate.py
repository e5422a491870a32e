from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.optimization.gate import MIN_GAIN, Case, Verdict, compare, judge, mid_p

LABELS = ["a", "b", "c"]
cases = st.lists(
    st.builds(
        Case,
        label=st.sampled_from(LABELS),
        incumbent=st.none() | st.sampled_from(LABELS),
        candidate=st.none() | st.sampled_from(LABELS),
    ),
    min_size=1,
    max_size=200,
)


def made(fixed: int, broken: int, both: int, neither: int = 0, label: str = "a") -> list[Case]:
    return [
        *[Case(label, "c", label)] * fixed,
        *[Case(label, label, "c")] * broken,
        *[Case(label, label, label)] * both,
        *[Case(label, "c", "c")] * neither,
    ]


def test_mid_p_agrees_with_enumeration() -> None:
    for n in range(1, 14):
        for fixed in range(n + 1):
            above = sum(comb(n, k) for k in range(fixed + 1, n + 1)) / 2**n
            assert mid_p(fixed, n - fixed) == pytest.approx(above + comb(n, fixed) / 2**n / 2)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mid_p_of_the_two_directions_adds_up_to_one(fixed: int, broken: int) -> None:
    assert mid_p(fixed, broken) + mid_p(broken, fixed) == pytest.approx(1)


@given(st.integers(0, 100), st.integers(0, 100))
def test_more_fixed_is_never_weaker_proof(fixed: int, broken: int) -> None:
    assert mid_p(fixed + 1, broken) <= mid_p(fixed, broken)


@given(cases, cases, st.floats(0.0001, 0.05))
def test_promoted_means_proven_and_large_enough(judged: list[Case], guard: list[Case], alpha: float) -> None:
    decision = judge(judged, guard, alpha=alpha)
    if decision.verdict is Verdict.PROMOTED:
        assert decision.comparison.p_value <= alpha
        assert decision.comparison.gain >= MIN_GAIN
        assert decision.comparison.fixed > decision.comparison.broken


@given(cases, st.floats(0.0001, 0.05))
def test_an_equal_candidate_is_never_promoted(judged: list[Case], alpha: float) -> None:
    same = [Case(case.label, case.incumbent, case.incumbent) for case in judged]
    assert judge(same, [], alpha=alpha).verdict is Verdict.REJECTED


@given(cases, st.floats(0.0001, 0.05))
def test_no_candidate_is_promoted_both_ways(judged: list[Case], alpha: float) -> None:
    swapped = [Case(case.label, case.candidate, case.incumbent) for case in judged]
    verdicts = [judge(judged, [], alpha=alpha).verdict, judge(swapped, [], alpha=alpha).verdict]
    assert verdicts.count(Verdict.PROMOTED) <= 1


def test_an_answer_that_is_missing_is_a_wrong_answer() -> None:
    assert compare([Case("a", "a", None)]).broken == 1


def test_a_small_gain_is_not_worth_a_version() -> None:
    decision = judge(made(fixed=15, broken=0, both=1000), [], alpha=0.05)
    assert decision.verdict is Verdict.REJECTED
    assert "better by less than" in decision.reason


def test_a_class_that_got_clearly_worse_stops_a_promotion() -> None:
    judged = made(40, 0, 60) + made(0, 12, 8, label="b")
    judged += [Case("b", "b", "b")] * 5
    decision = judge(judged, [], alpha=0.03)
    assert decision.verdict is Verdict.REJECTED
    assert "clearly worse on 'b'" in decision.reason


def test_an_incumbent_that_says_one_thing_to_everything_cannot_block_a_real_program() -> None:
    judged = [
        *[Case("a", "a", "a")] * 12,
        *[Case("a", "a", "b")] * 8,  # the price for not answering "a" every time
        *[Case("b", "a", "b")] * 40,
        *[Case("c", "a", "c")] * 40,
    ]
    assert judge(judged, [], alpha=0.03).verdict is Verdict.PROMOTED


def test_a_clear_loss_on_unreviewed_traces_stops_a_promotion() -> None:
    decision = judge(made(30, 2, 70), made(0, 60, 40), alpha=0.03)
    assert decision.verdict is Verdict.REJECTED
    assert "unreviewed traces" in decision.reason


def test_a_better_program_may_differ_from_the_incumbents_own_answers_by_what_the_incumbent_gets_wrong() -> None:
    assert judge(made(30, 5, 65), made(0, 45, 255), alpha=0.03).verdict is Verdict.PROMOTED


def test_a_gain_on_unreviewed_traces_proves_nothing() -> None:
    assert judge(made(0, 0, 100), made(90, 0, 10), alpha=0.03).verdict is Verdict.REJECTED


def test_the_reason_carries_the_numbers() -> None:
    decision = judge(made(30, 2, 68), [], alpha=0.03)
    assert decision.verdict is Verdict.PROMOTED
    assert "30 fixed, 2 broken of 100 holdout traces (70.0 % -> 98.0 %" in decision.reason
