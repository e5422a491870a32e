from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from autoopt_pipeline.dashboard.module_results import backtest_over_time, before_and_after, quality_over_time, race
from autoopt_pipeline.evaluation.quality_monitor import Day
from autoopt_pipeline.registry.backtests import Night, PlayedNights
from autoopt_pipeline.registry.module_versions import read_programs
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.program_cost import ProgramCost
from autoopt_pipeline.registry.version_store import VersionStore
from tests.support.stored_programs import manifest_of, program, store

AT = datetime(2026, 1, 1, tzinfo=UTC)
GATE = {"alpha": 0.019, "gain": 0.1, "fixed": 14, "broken": 4, "cases": 100, "reviews": 18}


@dataclass(frozen=True)
class Outcome:
    at: datetime
    verdict: str = "rejected"
    incumbent_score: float | None = 0.6
    candidate_score: float | None = 0.7
    reviews: int = 100


def cost(tokens: float, dollars: float | None) -> ProgramCost:
    return ProgramCost(
        decisions=100, lm_calls=1, input_tokens=tokens, output_tokens=0, cached_tokens=0, dollars=dollars
    )


@pytest.fixture
def files(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path))


def test_the_line_follows_what_served_and_jumps_where_a_candidate_was_promoted() -> None:
    outcomes = [Outcome(AT + timedelta(days=1), "promoted"), Outcome(AT), Outcome(AT + timedelta(days=2), "approved")]
    chart = quality_over_time(outcomes, [])
    assert chart
    assert [dot.measured.kind for dot in chart.dots] == [
        *("serves", "candidate"),
        *("serves", "promoted"),
        *("serves", "promoted"),
    ]
    ((name, points),) = chart.lines
    assert (name, len(points.split())) == ("serves", 5)
    assert "60.0 % of 100 reviewed traces (50.2 to 69.1 %)" in chart.dots[0].measured.title


def test_days_in_production_are_a_line_of_their_own() -> None:
    days = [Day(day=AT.date(), count=100, total=80.0), Day(day=AT.date() + timedelta(days=1), count=0, total=0)]
    chart = quality_over_time([Outcome(AT)], [], days)
    assert chart
    assert [dot.measured.kind for dot in chart.dots] == ["serves", "candidate", "live"]
    assert [name for name, _ in chart.lines] == ["serves", "live"]
    assert "in production: 80.0 % of 100 outcomes (71.1 to 86.7 %)" in chart.dots[-1].measured.title


def test_there_is_no_chart_of_what_nobody_has_measured() -> None:
    assert quality_over_time([], []) is None
    assert quality_over_time([Outcome(AT, reviews=0), Outcome(AT, "", None, None)], []) is None


def test_scores_that_nobody_can_have_are_not_drawn() -> None:
    outcomes = [Outcome(AT, incumbent_score=5.0, candidate_score=-1.0), Outcome(AT, reviews=-3)]
    assert quality_over_time(outcomes, []) is None


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"cases": -5}])
def test_a_gate_that_nobody_can_have_passed_is_not_shown(files: ObjectStore, wrong: dict[str, float]) -> None:
    store(VersionStore(files, "acme", "routing"), program("x", "acme"), active=True, changes={"gate": GATE | wrong})
    assert before_and_after(read_programs(files, "acme", "routing")) is None


def test_the_active_version_is_shown_beside_the_one_before(files: ObjectStore) -> None:
    artifacts = VersionStore(files, "acme", "routing")
    assert before_and_after(read_programs(files, "acme", "routing")) is None
    costs = {"incumbent": cost(400, 0.002), "candidate": cost(100, 0.0)}
    version = store(artifacts, program("what is there", "acme"), active=True, changes={"gate": GATE, "costs": costs})
    change = before_and_after(read_programs(files, "acme", "routing"))
    assert change
    assert (change.version, change.before, change.fixed, change.broken, change.traces) == (
        *(version, "baseline"),
        *(14, 4, 100),
    )
    assert change.interval.low < change.gain < change.interval.high
    assert [(what, [(bar.share, bar.text) for bar in pair]) for what, pair in change.costs] == [
        ("Tokens a decision", [(1.0, "400"), (0.25, "100")]),
        ("Dollars a thousand decisions", [(1.0, "$2.00"), (0.0, "$0.00")]),
    ]


def test_a_version_that_no_gate_decided_about_is_not_compared(files: ObjectStore) -> None:
    store(VersionStore(files, "acme", "routing"), program("what is there", "acme"), active=True)
    assert before_and_after(read_programs(files, "acme", "routing")) is None


def test_the_race_is_shown_best_first_whatever_somebody_wrote_into_the_manifest() -> None:
    tried = [
        {"optimizer": "start", "dev_score": 0.9, "judged_on": 16},
        {"optimizer": "coverage-16", "dev_score": 0.7, "judged_on": 55},
        {"optimizer": "coverage-50", "dev_score": 0.8, "judged_on": 55},
        {"optimizer": ["<b>"], "dev_score": "high", "judged_on": float("nan")},
        {},
    ]
    bars = race(manifest_of(program("what is there", "acme"), "v1").model_copy(update={"tried": tried}))
    assert [bar.name for bar in bars][:3] == ["coverage-50", "coverage-16", "start"]
    assert (bars[0].share, bars[0].text, bars[0].note) == (0.8, "80.0 %", "of 55")
    assert {bar.share for bar in bars[3:]} == {0.0}


def night(day: int, **found: object) -> Night:
    return Night.model_validate({"at": AT + timedelta(days=day), "decision": "due", "detail": "", **found})


def nights(*found: Night) -> PlayedNights:
    return PlayedNights(lm=("m",), stand_in=False, starts_from=None, nights=found)


def test_a_backtest_is_drawn_from_its_first_night_to_its_last() -> None:
    scores = {"incumbent_score": 0.6, "candidate_score": 0.8, "reviews_used": 50}
    chart = backtest_over_time(
        nights(
            night(0),
            night(1, verdict="awaiting_reviews"),
            night(2, verdict="promoted", **scores),
            night(3, failed="the budget is too small"),
            night(4, verdict="rejected", **scores),
        )
    )
    assert chart
    assert [(dot.x, dot.measured.kind) for dot in chart.dots] == [
        *((50, "serves"), (50, "promoted")),
        *((100, "serves"), (100, "candidate")),
    ]
    assert [(x, event.kind) for x, event in chart.events] == [(25, "waiting"), (50, "promoted"), (75, "failed")]


def test_a_backtest_that_compared_nothing_has_no_chart() -> None:
    assert backtest_over_time(nights()) is None
    assert backtest_over_time(nights(night(0), night(1, verdict="not_enough_data"))) is None
