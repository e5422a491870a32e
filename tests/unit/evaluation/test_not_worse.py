import math
import random
from dataclasses import replace

import pytest

from autoopt_pipeline.evaluation.cases import Judged, PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.gate import decide, reviews_needed
from autoopt_pipeline.evaluation.not_worse import MOST_TRACES, run_not_worse_test, traces_for
from autoopt_pipeline.evaluation.sequential_test import Batch
from autoopt_pipeline.registry.records import Verdict

RIGHT, WRONG = ScoredAnswer(1.0, "a", 0.8), ScoredAnswer(0.0, "b", 0.8)
FIXED, BROKEN, SAME = PairedCase("a", WRONG, RIGHT), PairedCase("a", RIGHT, WRONG), PairedCase("a", RIGHT, RIGHT)
ALPHA = 0.019


def batch(fixed: int, broken: int, *, left: int = 0, drawn: int = 300) -> Batch:
    """Reviewed disagreements, so many that wait, and like answers."""
    reviewed = [FIXED] * fixed + [BROKEN] * broken
    random.Random(1).shuffle(reviewed)
    different = fixed + broken + left
    alike = drawn - different
    first = alike * len(reviewed) // different if left else None
    return Batch(tuple(reviewed), different, 0, (), (SAME,) * alike, alike_first=first)


@pytest.mark.parametrize(("disagreements", "margin"), [(0.02, 0.01), (0.05, 0.01), (0.05, 0.02)])
def test_a_candidate_that_loses_the_margin_is_proven_no_more_often_than_alpha_allows(
    disagreements: float, margin: float
) -> None:
    rng, alpha, proven, tests = random.Random(7), 0.1, 0, 200
    for _ in range(tests):
        batches: list[Batch] = []
        for _ in range(5):
            draws = [rng.random() for _ in range(300)]
            won = sum(draw < (disagreements - margin) / 2 for draw in draws)
            lost = sum((disagreements - margin) / 2 <= draw < disagreements for draw in draws)
            batches.append(batch(won, lost))
            if run_not_worse_test(batches, margin, alpha).proven:
                proven += 1
                break
    assert proven / tests <= alpha


def test_traces_without_a_disagreement_prove_it_in_the_end() -> None:
    assert not run_not_worse_test([batch(0, 0, drawn=300)], 0.01, ALPHA).proven
    assert run_not_worse_test([batch(0, 0, drawn=300)] * 3, 0.01, ALPHA).proven


def test_what_comes_after_a_disagreement_that_waits_does_not_count() -> None:
    waiting = replace(batch(3, 1, left=6), alike_first=100)
    assert run_not_worse_test([waiting], 0.02, ALPHA).p_value == pytest.approx(
        run_not_worse_test([batch(3, 1, drawn=104)], 0.02, ALPHA).p_value
    )


def test_where_a_judge_spares_reviews_the_bets_allow_for_its_worst_error() -> None:
    spared = PairedCase("a", WRONG, RIGHT, Judged(1.0, 0.5, asked=False))
    refuted = PairedCase("a", RIGHT, WRONG, Judged(1.0, 0.5, asked=True))
    judged = Batch((spared, refuted) * 3, 6, 0, (), (SAME,) * 294)
    assert math.isfinite(run_not_worse_test([judged], 0.01, ALPHA).p_value)
    assert not run_not_worse_test([judged] * 3, 0.01, ALPHA).proven


def test_more_disagreements_and_smaller_margins_need_more_traces() -> None:
    needed = [traces_for(share, 0.0, margin, ALPHA) for share, margin in ((0.02, 0.02), (0.02, 0.01), (0.05, 0.01))]
    assert needed == sorted(needed)
    assert traces_for(0.05, -0.02, 0.01, ALPHA) == math.inf


class TestTheGate:
    def test_promotes_a_cheaper_candidate_that_is_as_good(self) -> None:
        batches = [batch(3, 2)] * 6
        as_good = decide(batches, alpha=ALPHA, max_loss=0.01)
        assert as_good.verdict is Verdict.PROMOTED
        assert as_good.reason.startswith("proven not worse by more than 1.0 points: 18 fixed, 12 broken of 1800")
        assert as_good.numbers["max_loss"] == 0.01
        assert as_good.numbers["not_worse_p_value"] <= ALPHA
        assert decide(batches, alpha=ALPHA).verdict is Verdict.REJECTED

    def test_says_that_it_is_better_if_it_is(self) -> None:
        assert decide([batch(30, 5)], alpha=ALPHA, max_loss=0.01).reason.startswith("proven better")

    def test_vetoes_a_clear_loss_in_one_class(self) -> None:
        lost = PairedCase("b", ScoredAnswer(1.0, "b", 0.8), ScoredAnswer(0.0, "a", 0.8))
        kept = PairedCase("b", ScoredAnswer(1.0, "b", 0.8), ScoredAnswer(1.0, "b", 0.8))
        fixed = PairedCase("a", ScoredAnswer(0.0, "c", 0.8), RIGHT)
        one = Batch((lost,) * 7 + (fixed,) * 25, 32, 0, (), (SAME,) * 262 + (kept,) * 6)
        decision = decide([one, one], alpha=ALPHA, max_loss=0.02)
        assert (decision.verdict, decision.reason[:21]) == (Verdict.REJECTED, "clearly worse on 'b' ")

    def test_goes_on_with_more_traces_than_a_test_of_better(self) -> None:
        decision = decide([batch(3, 3)] * 4, alpha=ALPHA, max_loss=0.01)
        assert decision.verdict is Verdict.INCONCLUSIVE
        assert "may be as good and is cheaper" in decision.reason

    def test_asks_for_no_review_of_a_candidate_that_cannot_be_proven(self) -> None:
        """It differs too often for the margin, and lost too often to be better."""
        far = decide([batch(5, 20, left=40)], alpha=ALPHA, max_loss=0.01)
        assert far.verdict is Verdict.REJECTED
        assert "objective.max_loss" in far.reason
        near = decide([batch(0, 0, left=6)], alpha=ALPHA, max_loss=0.01)
        assert near.verdict is Verdict.AWAITING_REVIEWS

    def test_gives_up_in_the_end(self) -> None:
        many = MOST_TRACES // 300
        decision = decide([batch(5, 5)] * many, alpha=ALPHA, max_loss=0.01)
        assert decision.verdict is Verdict.REJECTED
        assert "3,000 traces did not prove it" in decision.reason

    def test_knows_after_how_many_reviews_a_decision_is_possible(self) -> None:
        waiting = [batch(3, 2)] * 3 + [batch(0, 0, left=6)]
        needed = reviews_needed(waiting, ALPHA, 0.01)
        assert 1 <= needed <= 6
        assert needed < reviews_needed([batch(0, 0, left=60)], ALPHA, 0.01)
