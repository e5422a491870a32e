import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.evaluation.calibration import brier, confidence_of, reliability
from autoopt_pipeline.evaluation.cases import ScoredAnswer

answers = st.builds(
    ScoredAnswer,
    score=st.floats(0, 1),
    label=st.just("a"),
    confidence=st.none() | st.floats(0, 1),
)


def said(confidence: float | None, score: float = 1.0) -> ScoredAnswer:
    return ScoredAnswer(score, "a", confidence)


def test_a_missing_confidence_counts_as_one_half() -> None:
    assert confidence_of(said(None)) == 0.5
    assert brier([said(None)]) == 0.25


def test_a_believable_confidence_has_a_low_brier_score() -> None:
    assert brier([said(1.0, 1.0), said(0.0, 0.0)]) == 0
    assert brier([said(1.0, 0.0), said(0.0, 1.0)]) == 1
    assert brier([said(0.9), said(0.8)]) == pytest.approx((0.01 + 0.04) / 2)


@given(st.lists(answers, min_size=1))
def test_a_brier_score_is_a_share(given: list[ScoredAnswer]) -> None:
    assert 0 <= brier(given) <= 1


@given(st.lists(answers))
def test_every_answer_is_in_the_bin_of_its_confidence(given: list[ScoredAnswer]) -> None:
    bins = reliability(given)
    assert len(bins) == 10
    assert sum(b.count for b in bins) == len(given)
    for b in bins:
        assert (b.count == 0) == (b.mean_confidence is None) == (b.mean_score is None)
        assert b.mean_confidence is None or b.low - 1e-9 <= b.mean_confidence <= b.high + 1e-9


def test_bins_tell_confidence_from_score() -> None:
    bins = reliability([said(0.95, 1.0), said(1.0, 0.0), said(0.12, 0.0)])
    assert bins[9].count == 2
    assert bins[9].mean_confidence == pytest.approx(0.975)
    assert bins[9].mean_score == 0.5
    assert (bins[1].count, bins[1].mean_score) == (1, 0.0)
