import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.gate import MIN_GAIN, decide, reviews_needed
from autoopt_pipeline.evaluation.sequential_test import (
    BATCHES,
    MIN_DECIDED,
    Batch,
    is_hopeless,
    known_batch,
    run_test,
)
from autoopt_pipeline.registry.records import Verdict

RIGHT, WRONG, OTHER = ScoredAnswer(1.0, "a", 0.8), ScoredAnswer(0.0, "b", 0.3), ScoredAnswer(0.0, "c", 0.3)
FIXED, BROKEN, TIE, SAME = (PairedCase("a", *answers) for answers in (
    (WRONG, RIGHT), (RIGHT, WRONG), (WRONG, OTHER), (RIGHT, RIGHT)
))  # fmt: skip
ALPHA = 0.019

differences = st.lists(st.sampled_from([FIXED, BROKEN, TIE]), max_size=60)
alphas = st.floats(0.0001, 0.05)


def batch(reviewed: list[PairedCase], *, of: int | None = None, drawn: int = 300, known: int = 0) -> Batch:
    """The first reviews of so many disagreements; nobody has reviewed the like answers."""
    disagreements = len(reviewed) if of is None else of
    return Batch(tuple(reviewed), disagreements, known, (), (SAME,) * (drawn - disagreements))


def whole(reviewed: list[PairedCase]) -> list[Batch]:
    """The batches of a test that has reached its end with these reviews, all of them after the first batch."""
    return [batch([], drawn=1), batch(reviewed, drawn=len(reviewed) + BATCHES)]


@given(st.lists(differences, min_size=1, max_size=3), alphas)
def test_promoted_means_proven_within_alpha_and_large_enough(given_: list[list[PairedCase]], alpha: float) -> None:
    decision = decide([batch(reviewed) for reviewed in given_], alpha=alpha)
    if decision.verdict is Verdict.PROMOTED:
        assert decision.comparison.p_value <= alpha
        assert decision.comparison.gain >= MIN_GAIN


@given(differences, alphas)
def test_the_signs_decide_and_not_the_ties(reviewed: list[PairedCase], alpha: float) -> None:
    swapped = [{id(FIXED): BROKEN, id(BROKEN): FIXED}.get(id(case), case) for case in reviewed]
    assert not (run_test([batch(reviewed)], alpha).proven and run_test([batch(swapped)], alpha).proven)


def test_equal_programs_are_proven_better_no_more_often_than_alpha_allows() -> None:
    """Exactly: the chance of a proof, over all 2^11 signs of 11 differences, with a look after each."""
    alpha, count = 0.2, 11
    proven = 0
    for signs in range(1 << count):
        reviewed = [FIXED if signs >> place & 1 else BROKEN for place in range(count)]
        proven += run_test(whole(reviewed), alpha).proven
    assert 0.6 * alpha < proven / (1 << count) <= alpha


def test_partial_differences_keep_the_promise_too() -> None:
    rng = random.Random(7)
    halves = [
        PairedCase("a", ScoredAnswer(max(-size, 0), "a", None), ScoredAnswer(max(size, 0), "a", None))
        for size in (0.5, -0.5, 1.0, -1.0, 0.25, -0.25)
    ]
    runs = 400
    proven = sum(run_test(whole(rng.choices(halves, k=60)), 0.1).proven for _ in range(runs))
    assert proven / runs <= 0.1 + 2 * (0.1 * 0.9 / runs) ** 0.5


def test_a_large_gain_is_proven_after_a_few_reviews() -> None:
    decision = decide([batch([FIXED] * 12, of=120)], alpha=ALPHA)
    assert decision.verdict is Verdict.PROMOTED
    assert "12 fixed, 0 broken of 300 holdout traces (+40.0 points)" in decision.reason


def test_labels_that_were_known_are_one_look() -> None:
    """Whoever looks once may spend all that the traces allow; whoever looks after each review has spent some of it."""
    reviewed = [BROKEN, BROKEN, BROKEN, *[FIXED] * 16, BROKEN, *[FIXED] * 4]
    once, often = (run_test([batch(reviewed, known=known)], ALPHA) for known in (len(reviewed), 0))
    assert once.p_value < often.p_value


def test_while_reviews_are_missing_it_waits_for_them() -> None:
    decision = decide([batch([FIXED, FIXED, BROKEN], of=60)], alpha=ALPHA)
    assert decision.verdict is Verdict.AWAITING_REVIEWS
    assert decision.reason.startswith("57 of 60 disagreements wait for a review")
    assert decision.power is None


def test_a_candidate_that_loses_is_given_up_before_all_is_reviewed() -> None:
    losing = [FIXED, *[BROKEN] * (MIN_DECIDED - 1)]
    assert is_hopeless([batch(losing, of=100)])
    decision = decide([batch(losing, of=100)], alpha=ALPHA)
    assert decision.verdict is Verdict.REJECTED
    assert "wins too few of the reviewed disagreements" in decision.reason


def test_programs_that_hardly_differ_need_no_review_at_all() -> None:
    assert decide([batch([], of=5)], alpha=ALPHA).verdict is Verdict.REJECTED


def test_a_gain_that_is_not_proven_goes_on_with_the_next_batch() -> None:
    first = batch([FIXED, BROKEN, FIXED, TIE] * 7)
    assert decide([first], alpha=ALPHA).verdict is Verdict.INCONCLUSIVE
    assert decide([first, first], alpha=ALPHA).verdict is Verdict.INCONCLUSIVE
    decision = decide([first, first, first], alpha=ALPHA / 10)
    assert decision.verdict is Verdict.REJECTED
    assert "still not proven after 900 traces" in decision.reason


def test_reviews_needed_is_the_soonest_moment_that_can_decide() -> None:
    waiting = batch([FIXED, BROKEN, TIE], of=80)
    needed = reviews_needed([waiting], ALPHA)

    def after(case: PairedCase, count: int) -> Verdict:
        return decide([replace(waiting, reviewed=(*waiting.reviewed, *[case] * count))], alpha=ALPHA).verdict

    assert {after(FIXED, needed - 1), after(BROKEN, needed - 1)} == {Verdict.AWAITING_REVIEWS}
    assert Verdict.AWAITING_REVIEWS not in {after(FIXED, needed)} & {after(BROKEN, needed)}


def test_a_class_that_got_clearly_worse_stops_the_promotion_though_nobody_reviewed_like_answers() -> None:
    lost = PairedCase("b", ScoredAnswer(1.0, "b", 0.8), ScoredAnswer(0.0, "a", 0.3))
    sized = Batch((*[FIXED] * 40, *[lost] * 12), 52, 0, (), (SAME,) * 248)
    decision = decide([sized], alpha=ALPHA)
    assert decision.verdict is Verdict.REJECTED
    assert "clearly worse on 'b'" in decision.reason


def test_a_score_is_known_only_once_somebody_has_reviewed_like_answers() -> None:
    reviewed = batch([*[FIXED] * 30, *[BROKEN] * 10], of=40, drawn=200)
    assert decide([reviewed], alpha=ALPHA).comparison.candidate_score is None
    wrong_alike = PairedCase("a", WRONG, WRONG)
    audited = replace(reviewed, agreed=(SAME, SAME, SAME, wrong_alike), presumed=reviewed.presumed[4:])
    comparison = decide([audited], alpha=ALPHA).comparison
    assert comparison.incumbent_score == pytest.approx((160 * 0.75 + 10) / 200)
    assert comparison.candidate_score == pytest.approx((160 * 0.75 + 30) / 200)


def test_an_empty_test_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="there are no cases to compare"):
        decide([known_batch([])], alpha=ALPHA)
