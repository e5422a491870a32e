"""Where the marks of a backtest's timeline are."""

from datetime import UTC, datetime, timedelta

from autoopt_pipeline.dashboard.backtest_timeline import HEIGHT, WIDTH, timeline
from autoopt_pipeline.registry.backtests import Night, PlayedNights

AT = datetime(2026, 1, 1, tzinfo=UTC)


def played(*found: dict[str, object]) -> PlayedNights:
    nights = [
        Night.model_validate({"at": AT + timedelta(days=day), "decision": "due", "detail": "", **each})
        for day, each in enumerate(found)
    ]
    return PlayedNights(lm=("m",), stand_in=False, starts_from=None, nights=tuple(nights))


def test_nights_go_from_left_to_right_and_scores_from_the_bottom_to_the_top() -> None:
    line = timeline(
        played(
            {"decision": "too_few_traces"},
            {"verdict": "promoted", "incumbent_score": 0.0, "candidate_score": 1.0},
            {"verdict": "rejected", "incumbent_score": 1.0, "candidate_score": 0.5},
            {"verdict": "awaiting_reviews"},
            {"failed": "the budget is too small"},
        )
    )
    xs = [mark.x for mark in line.marks]
    assert xs == sorted(xs)
    assert 0 < xs[0] < xs[-1] < WIDTH
    assert [mark.kind for mark in line.marks] == ["skipped", "promoted", "rejected", "awaiting_reviews", "failed"]
    skipped, best, half, *_ = (mark.y for mark in line.marks)
    assert 0 < best < half < line.floor < skipped < HEIGHT
    assert line.incumbent == f"{xs[1]},{line.floor}.0 {xs[2]},{best}"
    assert line.marks[1].text == "2026-01-02: promoted, 0.0 to 100.0 %"
    assert line.marks[0].text == "2026-01-01: too few traces"


def test_one_night_and_none_have_a_timeline() -> None:
    assert len(timeline(played({})).marks) == 1
    assert timeline(played()).marks == []
