"""A judge may spare people reviews, and cannot make a promotion."""

import random
from dataclasses import replace
from datetime import UTC, datetime
from statistics import fmean

import pytest

from autoopt_pipeline.evaluation.cases import UNDECIDED_CLASS, Judged, PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.gate import decide, reviews_needed
from autoopt_pipeline.evaluation.judge_agreement import agreement_with, last_agreement
from autoopt_pipeline.evaluation.sequential_test import ASKED, Batch, is_hopeless, run_test
from autoopt_pipeline.evaluation.sequential_test_log import batch_of, stored_case
from autoopt_pipeline.registry.records import DrawnTrace, SequentialTestStep, StoredAnswer, StoredBatch, Verdict
from autoopt_pipeline.reviews.order import to_review

ALPHA = 0.019


def case(difference: float, label: str = "a") -> PairedCase:
    incumbent, candidate = (ScoredAnswer(max(sign * difference, 0.0), label, None) for sign in (-1, 1))
    return PairedCase(label, incumbent, candidate)


def judged(word: float, truth: float, *, asked: bool, share: float | None = None, label: str = "a") -> PairedCase:
    """A disagreement with the judge's word, and people's where they are asked."""
    if share is None:
        share = 0.0 if word < 0 else ASKED
    return replace(case(truth if asked else word, label), judged=Judged(word, share, asked))


def drawn(word: float, truth: float, rng: random.Random) -> PairedCase:
    return judged(word, truth, asked=rng.random() < (0.0 if word < 0 else ASKED))


def batch(cases: list[PairedCase], of: int = 300, rest: tuple[Judged, ...] = ()) -> Batch:
    same = case(0.0)
    count = len(cases) + len(rest)
    return Batch(tuple(cases), count, 0, (), (same,) * (of - count), rest)


@pytest.mark.parametrize(("word", "truth"), [(1, 1), (1, 0), (1, -1), (0, 1), (0, -1), (0.4, -0.2), (0.4, 0.9)])
def test_evidence_is_on_average_what_people_see_whatever_the_judge_says(word: float, truth: float) -> None:
    asked, spared = (judged(word, truth, asked=asked).evidence for asked in (True, False))
    assert ASKED * asked + (1 - ASKED) * spared == pytest.approx(truth)


@pytest.mark.parametrize("truth", [1, 0, -1, 0.3])
def test_what_the_judge_gives_to_the_incumbent_counts_as_lost(truth: float) -> None:
    assert judged(-0.5, truth, asked=False).evidence == -1.0 <= truth


def test_a_judge_that_spares_no_review_changes_nothing() -> None:
    cases = [case(1)] * 20 + [case(-1)] * 4
    assist = [judged(-1, found.difference, asked=True, share=1.0) for found in cases]
    assert run_test([batch(assist)], ALPHA) == run_test([batch(cases)], ALPHA)


@pytest.mark.parametrize("lies", [0.0, 0.5, 1.0])
def test_candidates_that_are_no_better_are_not_proven_by_a_judge_that_favours_them(lies: float) -> None:
    rng, proven = random.Random(1), 0
    for _ in range(300):
        truths = [rng.choice((1, -1)) for _ in range(90)]
        cases = [drawn(1 if rng.random() < lies else truth, truth, rng) for truth in truths]
        proven += run_test([batch(cases)], ALPHA).proven
    assert proven / 300 <= ALPHA + 0.01
    # Its word alone would have proven nearly all of them where it lies.
    words = [case(1)] * 90
    assert run_test([batch(words)], ALPHA).proven


def test_a_judge_that_is_right_saves_reviews() -> None:
    rng, used = random.Random(1), []
    for _ in range(100):
        truths = [1 if rng.random() < 0.85 else -1 for _ in range(90)]
        cases = [drawn(truth, truth, rng) for truth in truths]
        proof = next(n for n in range(1, 91) if run_test([batch(cases[:n])], ALPHA).proven or n == 90)
        used.append((proof, sum(found.by_person for found in cases[:proof])))
    assert fmean(reviews for _, reviews in used) < 0.5 * fmean(proof for proof, _ in used)


def test_the_test_may_stop_after_any_case_and_stays_proven() -> None:
    cases = [judged(1, 1, asked=k % 2 == 0) for k in range(40)]
    assert run_test([batch(cases)], ALPHA).proven
    assert run_test([batch([*cases, *[judged(-1, -1, asked=False)] * 40])], ALPHA).proven


def test_a_test_has_one_form_from_its_first_review_on() -> None:
    # These had a label before, so no judge was asked about them. Later cases are spared.
    labelled = [case(1)] * 9
    waiting = batch(labelled, rest=(Judged(1, ASKED, True),) * 40)
    assert run_test([batch(labelled)], ALPHA).allowed < ALPHA
    assert run_test([waiting], ALPHA).allowed == ALPHA
    assert run_test([waiting], ALPHA).p_value > run_test([batch(labelled)], ALPHA).p_value


def test_a_promotion_says_how_many_the_judge_alone_decided() -> None:
    cases = [judged(1, 1, asked=k % 2 == 0, label="ab"[k % 3 % 2]) for k in range(40)]
    decision = decide([batch(cases)], alpha=ALPHA)
    assert decision.verdict is Verdict.PROMOTED
    assert "20 by the judge alone" in decision.reason
    assert (decision.comparison.reviews, decision.numbers["by_judge"]) == (20, 20)


def test_what_is_left_counts_only_those_that_people_are_asked_about() -> None:
    rest = (Judged(1, ASKED, True), Judged(1, ASKED, False), Judged(-1, 0.0, False)) * 20
    waiting = batch([], rest=rest)
    decision = decide([waiting], alpha=ALPHA)
    assert decision.verdict is Verdict.AWAITING_REVIEWS
    assert decision.reason.startswith("20 of 60 disagreements wait for a review")
    assert 1 <= reviews_needed([waiting], ALPHA) <= 20


def test_nobody_is_asked_about_a_candidate_that_the_judge_finds_hopeless() -> None:
    lost = (Judged(-1, 0.0, False),) * 40 + (Judged(1, ASKED, True),) * 10
    assert is_hopeless([batch([], rest=lost)])
    assert decide([batch([], rest=lost)], alpha=ALPHA).verdict is Verdict.REJECTED
    asked = tuple(Judged(word.difference, 1.0, True) for word in lost)
    assert not is_hopeless([batch([], rest=asked)])  # one that is not known yet only orders the queue


def step(cases: list[PairedCase], judge: str | None = "openai/judge", sequence: int = 1) -> SequentialTestStep:
    return SequentialTestStep(
        sequence=sequence,
        at=datetime.now(UTC),
        run_id="r",
        version="20260101T000000Z-candidat",
        incumbent=None,
        lm="stand-in",
        labels=[],
        alpha=0.01,
        begins=True,
        draws="all",
        seen=[],
        judge=judge,
        batch=StoredBatch(
            reviewed=[stored_case(found) for found in cases],
            disagreements=len(cases),
            known=0,
            agreed=[],
            presumed=[],
        ),
        verdict="rejected",
    )


def test_agreement_is_counted_where_both_have_judged() -> None:
    cases = [
        judged(1, 1, asked=True),
        judged(-1, 1, asked=True, label="b", share=1.0),
        judged(0, 0, asked=True),
        judged(1, 1, asked=False),
        judged(1, 0, asked=True, label=UNDECIDED_CLASS),
        case(1),
    ]
    agreement = agreement_with("openai/judge", [step(cases), step(cases, judge="openai/other")])
    assert (agreement.reviews, agreement.agreed) == (3, 2)
    assert agreement.by_class == {"a": (2, 2), "b": (0, 1)}
    assert str(agreement) == "people agree with openai/judge on 2 of 3 disagreements"
    assert last_agreement([step(cases), step(cases, judge=None, sequence=2)]) == agreement
    assert last_agreement([step(cases, judge=None)]) is None


@pytest.mark.parametrize(
    ("agreed", "differed", "may"), [(19, 0, False), (20, 0, True), (90, 10, True), (89, 11, False)]
)
def test_a_judge_is_known_by_its_last_reviews(agreed: int, differed: int, may: bool) -> None:
    long_ago = [judged(-1, 1, asked=True)] * 100 if agreed + differed == 100 else []
    cases = [*long_ago, *[judged(1, 1, asked=True)] * agreed, *[judged(1, -1, asked=True)] * differed]
    assert agreement_with("openai/judge", [step(cases)]).may_spare_reviews is may


def test_a_stored_batch_keeps_the_judges_word() -> None:
    cases = [judged(1, -1, asked=True), judged(-1, -1, asked=False), case(1)]
    stored = step(cases).batch
    assert stored
    assert batch_of(stored).reviewed == tuple(cases)


def test_reviewers_are_not_asked_about_what_they_are_spared() -> None:
    words = [judged(1, 1, asked=True), judged(-1, -1, asked=False), None]
    said = StoredAnswer(values={}, confidence=None)
    traces = [
        DrawnTrace(
            span_id=f"s{k}",
            trace_id=f"t{k}",
            time=datetime.now(UTC),
            alike=False,
            incumbent=said,
            candidate=said,
            judged=stored_case(word) if word else None,
        )
        for k, word in enumerate(words)
    ]
    assert [trace.span_id for trace in to_review(traces)] == ["s0", "s2"]
