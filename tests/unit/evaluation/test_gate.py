import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.gate import GOAL, MIN_GAIN, GateDecision, compare, decide
from autoopt_pipeline.evaluation.sequential_test import known_batch, run_test
from autoopt_pipeline.registry.records import Verdict

LABELS = ["a", "b", "c"]
graded = st.one_of(
    st.builds(
        ScoredAnswer,
        score=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
        label=st.sampled_from(LABELS),
        confidence=st.none() | st.floats(0, 1),
    ),
    st.just(ScoredAnswer(0.0, None, None)),
)
cases = st.lists(
    st.builds(PairedCase, label=st.sampled_from(LABELS), incumbent=graded, candidate=graded), min_size=1, max_size=100
)
alphas = st.floats(0.0001, 0.05)


def answer(label: str | None, right: str, confidence: float | None = 0.8) -> ScoredAnswer:
    return ScoredAnswer(float(label == right), label, confidence)


def case(label: str, incumbent: str | None, candidate: str | None) -> PairedCase:
    return PairedCase(label, answer(incumbent, label), answer(candidate, label))


def made(fixed: int, broken: int, both: int, neither: int = 0, label: str = "a") -> list[PairedCase]:
    return [
        *[case(label, "c", label)] * fixed,
        *[case(label, label, "c")] * broken,
        *[case(label, label, label)] * both,
        *[case(label, "c", "c")] * neither,
    ]


def decided(judged: list[PairedCase], guard: list[PairedCase], *, alpha: float) -> GateDecision:
    """Judge traces whose right answers were all known."""
    return decide([known_batch(judged)], guard, alpha=alpha)


@given(cases, cases, alphas)
def test_promoted_means_proven_and_large_enough(
    judged: list[PairedCase], guard: list[PairedCase], alpha: float
) -> None:
    decision = decided(judged, guard, alpha=alpha)
    if decision.verdict is Verdict.PROMOTED:
        assert decision.comparison.p_value <= alpha
        assert decision.comparison.gain >= MIN_GAIN


@given(cases, cases, alphas)
def test_waiting_means_large_enough_and_not_proven(
    judged: list[PairedCase], guard: list[PairedCase], alpha: float
) -> None:
    decision = decided(judged, guard, alpha=alpha)
    if decision.verdict is Verdict.INCONCLUSIVE:
        assert not run_test([known_batch(judged)], alpha).proven
        assert decision.comparison.gain >= MIN_GAIN


@given(cases, alphas)
def test_an_equal_candidate_is_rejected(judged: list[PairedCase], alpha: float) -> None:
    same = [PairedCase(case.label, case.incumbent, case.incumbent) for case in judged]
    assert decided(same, [], alpha=alpha).verdict is Verdict.REJECTED


@given(cases, alphas)
def test_no_candidate_is_promoted_both_ways(judged: list[PairedCase], alpha: float) -> None:
    swapped = [PairedCase(case.label, case.candidate, case.incumbent) for case in judged]
    verdicts = [decided(judged, [], alpha=alpha).verdict, decided(swapped, [], alpha=alpha).verdict]
    assert verdicts.count(Verdict.PROMOTED) <= 1


def test_an_answer_that_is_missing_is_a_wrong_answer() -> None:
    assert compare([known_batch([case("a", "a", None)])], 1.0).broken == 1


def test_partial_scores_count_by_how_much_they_gain() -> None:
    batch = known_batch(
        [PairedCase("a", ScoredAnswer(0.5, "b", None), ScoredAnswer(1.0, "a", None))] * 40 + made(0, 20, 40)
    )
    halves = compare([batch], run_test([batch], 0.05).p_value)
    assert (halves.fixed, halves.broken, halves.gain) == (40, 20, pytest.approx(0.0))
    assert halves.p_value == pytest.approx(0.5, abs=0.05)


def test_a_gain_that_is_large_enough_and_not_proven_waits_for_more_traces() -> None:
    waiting = decided(made(10, 6, 84), [], alpha=0.03)
    assert waiting.verdict is Verdict.INCONCLUSIVE
    assert "not proven yet (to see +5 points you need about" in waiting.reason


def test_more_cases_of_the_same_kind_turn_waiting_into_proof() -> None:
    assert decided(made(10, 3, 87), [], alpha=0.02).verdict is Verdict.INCONCLUSIVE
    assert decided(made(30, 9, 261), [], alpha=0.02).verdict is Verdict.PROMOTED


def test_a_small_gain_is_not_worth_a_version() -> None:
    decision = decided(made(fixed=15, broken=0, both=1000), [], alpha=0.05)
    assert decision.verdict is Verdict.REJECTED
    assert "not better by 2.0 %" in decision.reason


@pytest.mark.parametrize("fixed", [40, 18])
def test_a_class_that_got_clearly_worse_stops_promotion_and_waiting(fixed: int) -> None:
    judged = made(fixed, 0, 100 - fixed) + made(0, 12, 8, label="b") + [case("b", "b", "b")] * 5
    decision = decided(judged, [], alpha=0.03)
    assert decision.verdict is Verdict.REJECTED
    assert "clearly worse on 'b'" in decision.reason


def test_an_incumbent_that_says_one_thing_to_everything_cannot_block_a_real_program() -> None:
    judged = [
        *[case("a", "a", "a")] * 12,
        *[case("a", "a", "b")] * 8,  # the price for not answering "a" every time
        *[case("b", "a", "b")] * 40,
        *[case("c", "a", "c")] * 40,
    ]
    assert decided(judged, [], alpha=0.03).verdict is Verdict.PROMOTED


def test_a_clear_loss_on_unreviewed_traces_stops_a_promotion() -> None:
    decision = decided(made(30, 2, 70), made(0, 60, 40), alpha=0.03)
    assert decision.verdict is Verdict.REJECTED
    assert "unreviewed traces" in decision.reason


def test_a_better_program_may_differ_from_the_incumbents_own_answers_by_what_the_incumbent_gets_wrong() -> None:
    assert decided(made(30, 5, 65), made(0, 45, 255), alpha=0.03).verdict is Verdict.PROMOTED


def test_a_gain_on_unreviewed_traces_proves_nothing() -> None:
    assert decided(made(0, 0, 100), made(90, 0, 10), alpha=0.03).verdict is Verdict.REJECTED


def confident(right: float, wrong: float) -> list[PairedCase]:
    """A clear gain by a candidate that is so sure of right and of wrong answers."""
    return [
        *[PairedCase("a", answer("c", "a", 0.3), answer("a", "a", right))] * 30,
        *[PairedCase("a", answer("a", "a", 0.8), answer("a", "a", right))] * 50,
        *[PairedCase("a", answer("c", "a", 0.3), answer("c", "a", wrong))] * 20,
    ]


def test_a_confidence_that_can_no_longer_be_believed_stops_a_promotion() -> None:
    decision = decided(confident(right=0.3, wrong=0.9), [], alpha=0.03)
    assert decision.verdict is Verdict.REJECTED
    assert "confidence is clearly less reliable" in decision.reason
    assert decision.calibration and decision.calibration.candidate > decision.calibration.incumbent


def test_a_confidence_that_is_a_little_less_believable_does_not() -> None:
    decision = decided(confident(right=0.75, wrong=0.4), [], alpha=0.03)
    assert decision.verdict is Verdict.PROMOTED
    a_little = confident(right=0.7, wrong=0.3)[30:]  # 0.04 to 0.09 where the answers are right
    assert decided(made(30, 0, 0) + a_little, [], alpha=0.03).verdict is Verdict.PROMOTED


def test_answers_that_are_harder_to_foretell_are_not_the_confidences_fault() -> None:
    """From one in ten right to half: saying how often it is right then has a Brier score of 0.25 and no longer 0.09."""
    cases = [
        PairedCase("a", ScoredAnswer(float(i < 10), "a", 0.1), ScoredAnswer(float(i < 50), "a", 0.5))
        for i in range(100)
    ]
    decision = decided(cases, [], alpha=0.03)
    assert decision.calibration and decision.calibration.candidate > decision.calibration.incumbent + 0.15
    assert decision.verdict is Verdict.PROMOTED


def test_the_reason_carries_the_numbers() -> None:
    decision = decided(made(30, 2, 68), [], alpha=0.03)
    assert decision.verdict is Verdict.PROMOTED
    assert "30 fixed, 2 broken of 100 holdout traces (70.0 % -> 98.0 %), p" in decision.reason


@given(cases, alphas)
def test_a_decision_says_how_many_cases_it_takes(judged: list[PairedCase], alpha: float) -> None:
    able = decided(judged, [], alpha=alpha).power
    assert able is not None
    assert (able.gain, able.alpha, able.have) == (GOAL, alpha, len(judged))
    assert (able.detectable <= GOAL) == (able.needed <= able.have)


def test_nothing_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="there are no cases to compare"):
        decided([], [], alpha=0.03)
