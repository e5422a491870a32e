import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.gate import MIN_GAIN
from autoopt_pipeline.evaluation.sequential_test import MAX_CASES, MIN_CASES, decide_sequentially
from autoopt_pipeline.registry.records import Verdict

RIGHT, WRONG = ScoredAnswer(1.0, "a", 0.8), ScoredAnswer(0.0, "b", 0.3)
sized = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 200))
alphas = st.floats(0.0001, 0.05)


def made(fixed: int, broken: int, same: int) -> list[PairedCase]:
    return (
        [PairedCase("a", WRONG, RIGHT)] * fixed
        + [PairedCase("a", RIGHT, WRONG)] * broken
        + [PairedCase("a", RIGHT, RIGHT)] * same
    )


@given(sized, alphas)
def test_promoted_means_proven_at_the_trials_alpha_and_large_enough(sizes: tuple[int, int, int], alpha: float) -> None:
    decision = decide_sequentially(made(*sizes), alpha=alpha)
    if decision.verdict is Verdict.PROMOTED:
        assert decision.comparison.p_value <= alpha
        assert decision.comparison.gain >= MIN_GAIN


@given(sized, alphas, alphas)
def test_a_stricter_alpha_never_promotes_more(sizes: tuple[int, int, int], one: float, other: float) -> None:
    strict, loose = sorted((one, other))
    if decide_sequentially(made(*sizes), alpha=strict).verdict is Verdict.PROMOTED:
        assert decide_sequentially(made(*sizes), alpha=loose).verdict is Verdict.PROMOTED


def test_a_trial_waits_until_its_cases_prove_the_gain() -> None:
    nights = [made(6 * night, 2 * night, 42 * night) for night in range(1, 12)]
    verdicts = [decide_sequentially(cases, alpha=0.01).verdict for cases in nights]
    proven = verdicts.index(Verdict.PROMOTED)
    assert proven > 1
    assert set(verdicts[:proven]) == {Verdict.INCONCLUSIVE}
    assert set(verdicts[proven:]) == {Verdict.PROMOTED}


def test_a_few_bad_cases_do_not_end_a_trial() -> None:
    assert decide_sequentially(made(0, 5, 40), alpha=0.01).verdict is Verdict.INCONCLUSIVE


def test_a_trial_without_a_gain_worth_a_version_is_given_up_soon() -> None:
    decision = decide_sequentially(made(4, 3, MIN_CASES - 7), alpha=0.01)
    assert decision.verdict is Verdict.REJECTED
    assert "given up" in decision.reason


def test_a_gain_that_is_never_proven_is_given_up_at_last() -> None:
    nearly = made(110, 80, MAX_CASES - 191)
    assert decide_sequentially(nearly, alpha=0.001).verdict is Verdict.INCONCLUSIVE
    decision = decide_sequentially([*nearly, *made(0, 0, 1)], alpha=0.001)
    assert decision.verdict is Verdict.REJECTED
    assert "still not proven after 1000 new traces" in decision.reason


def test_a_gain_worth_less_than_a_version_is_not_promoted_however_well_proven() -> None:
    assert decide_sequentially(made(18, 0, 982), alpha=0.05).verdict is Verdict.REJECTED


def test_a_class_that_got_clearly_worse_in_the_trial_stops_the_promotion() -> None:
    lost = [PairedCase("b", ScoredAnswer(1.0, "b", 0.8), ScoredAnswer(0.0, "a", 0.3))] * 12
    decision = decide_sequentially([*made(40, 0, 60), *lost], alpha=0.01)
    assert decision.verdict is Verdict.REJECTED
    assert "clearly worse on 'b'" in decision.reason


def test_an_empty_trial_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="there are no cases to compare"):
        decide_sequentially([], alpha=0.01)
