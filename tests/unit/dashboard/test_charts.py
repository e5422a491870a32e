from datetime import UTC, datetime, timedelta

import pytest

from autoopt_pipeline.dashboard.charts import Event, Measured, interval_chart, time_chart

AT = datetime(2026, 1, 1, tzinfo=UTC)


def measured(day: int, score: float, *, kind: str = "serves", line: str = "serves") -> Measured:
    return Measured(AT + timedelta(days=day), score, score - 0.05, score + 0.05, kind, f"day {day}", line)


def test_scores_stand_at_their_time_between_round_ends_of_the_axis() -> None:
    chart = time_chart([measured(10, 0.75), measured(0, 0.65), measured(5, 0.7, kind="candidate", line="")])
    assert [(dot.x, dot.measured.kind) for dot in chart.dots] == [(0, "serves"), (50, "candidate"), (100, "serves")]
    assert chart.scores == ["80", "75", "70", "65", "60"]
    assert [dot.y for dot in chart.dots] == [75, 50, 25]
    assert (chart.dots[1].low, chart.dots[1].high) == (75, 25)
    assert chart.lines == [("serves", "0.0,75.0 100.0,25.0")]
    assert chart.times == ["2026-01-01", "2026-01-04", "2026-01-07", "2026-01-11"]


def test_only_events_within_the_time_are_drawn() -> None:
    events = [Event(AT + timedelta(days=day), "promoted", "") for day in (-1, 5, 20)]
    chart = time_chart([measured(0, 0.5), measured(10, 0.6)], events)
    assert [x for x, _ in chart.events] == [50]


def test_a_single_score_stands_in_the_middle_and_none_is_no_chart() -> None:
    chart = time_chart([measured(0, 0.5)])
    assert ([dot.x for dot in chart.dots], chart.times) == ([50], ["2026-01-01 00:00"])
    with pytest.raises(ValueError, match="nothing to draw"):
        time_chart([])


@pytest.mark.parametrize(
    ("low", "middle", "high", "ends"),
    [(0.02, 0.08, 0.14, (-0.05, 0.15)), (-0.12, -0.08, -0.02, (-0.15, 0.05)), (-0.01, 0, 0.01, (-0.05, 0.05))],
)
def test_a_difference_always_stands_beside_zero(
    low: float, middle: float, high: float, ends: tuple[float, float]
) -> None:
    chart = interval_chart(low, middle, high)
    assert chart.ends == pytest.approx(ends)
    assert 0 <= chart.low <= chart.middle <= chart.high <= 100
    assert 0 < chart.zero < 100
