"""A backtest of traces in memory: what is later changes no earlier night."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from autoopt_pipeline.modules.spec import Annotation, LoggedDecision
from autoopt_pipeline.optimization.backtest import NIGHT, Allowance, nights_until, play, play_all
from autoopt_pipeline.registry.backtests import Night
from autoopt_pipeline.tenants.config import with_field
from tests.support.optimizing import CONFIG
from tests.support.past_traces import NIGHTS, SHORT_PROMPTS, made_scenario, played, reviewed_at, reviewed_stream


@pytest.fixture(scope="module")
def stream() -> list[LoggedDecision]:
    return reviewed_stream()


@pytest.fixture(scope="module")
def whole(stream: list[LoggedDecision], tmp_path_factory: pytest.TempPathFactory) -> tuple[Night, ...]:
    """All nights of the stream."""
    return played(made_scenario(stream, tmp_path_factory.mktemp("whole")))


def test_what_is_later_changes_no_earlier_night(
    stream: list[LoggedDecision], whole: tuple[Night, ...], tmp_path: Path
) -> None:
    assert any(night.promoted for night in whole[:2]), [night.verdict for night in whole]
    until = NIGHTS[1]
    refuted = Annotation("HUMAN", "wrong", {}, until + timedelta(seconds=1))
    disputed = [replace(each, annotations=(*each.annotations, refuted)) for each in stream if each.time < until]
    others = [
        replace(each, span_id=f"later{number}", time=until + timedelta(minutes=1 + number))
        for number, each in enumerate(disputed[:100])
    ]
    assert played(made_scenario([*disputed, *others], tmp_path), NIGHTS[:2]) == whole[:2]


@pytest.mark.parametrize(
    "changes",
    [{"mode": "observe"}, {"mode": "off"}, {"modules.routing.mode": "off", "enable_auto_optimization": "false"}],
)
def test_what_is_not_turned_on_is_played_as_if_it_were(
    changes: dict[str, str], stream: list[LoggedDecision], whole: tuple[Night, ...], tmp_path: Path
) -> None:
    config = SHORT_PROMPTS
    for field, value in changes.items():
        config = with_field(config, field, value)
    assert played(made_scenario(stream, tmp_path, config), NIGHTS[:1]) == whole[:1]


def test_a_review_counts_from_when_it_was_made(stream: list[LoggedDecision], tmp_path: Path) -> None:
    never = [replace(each, annotations=()) for each in stream]
    late = [reviewed_at(each, NIGHTS[1] + NIGHT / 2) for each in stream]
    unreviewed = played(made_scenario(never, tmp_path / "never"))
    reviewed_late = played(made_scenario(late, tmp_path / "late"))
    assert reviewed_late[:2] == unreviewed[:2]
    assert [night.verdict for night in unreviewed] == ["awaiting_reviews", None, None]
    assert unreviewed[-1].decision == "awaiting_reviews"
    assert reviewed_late[-1].verdict == "promoted"
    first, *others = [night.reviews_asked for night in unreviewed]
    assert first > unreviewed[0].reviews_needed > 0
    assert others == [0, 0]


def test_a_promoted_version_is_the_incumbent_of_later_nights(whole: tuple[Night, ...]) -> None:
    runs = [night for night in whole if night.ran]
    promoted = next(night for night in runs if night.promoted)
    later = runs[runs.index(promoted) + 1 :]
    assert promoted.incumbent_version is None
    assert later
    assert later[0].incumbent_version == promoted.version


def test_a_spent_budget_ends_the_backtest_and_keeps_what_it_has(
    stream: list[LoggedDecision], whole: tuple[Night, ...], tmp_path: Path
) -> None:
    first = next(place for place, night in enumerate(whole) if night.lm_calls)
    allowance = Allowance(whole[first].lm_calls + 1)
    (found,), ended = play_all([made_scenario(stream, tmp_path)], NIGHTS, allowance)
    kept = found["routing"].nights
    assert kept == whole[: len(kept)]
    assert first < len(kept) < len(NIGHTS)
    assert ended == (
        f"the budget of {allowance.max_calls} LM calls was spent in the night of {NIGHTS[len(kept)]:%Y-%m-%d}; "
        "--max-calls allows more"
    )
    assert allowance.calls == allowance.max_calls


def test_a_night_in_quiet_hours_is_put_off_until_they_end(tmp_path: Path) -> None:
    config = with_field(CONFIG, "quiet_hours", '[{"start": "22:00", "end": "05:00"}]')
    scenario = made_scenario([], tmp_path / "quiet", config)
    nights = [found["routing"] for found in play(scenario, NIGHTS, Allowance(0))]
    assert [night.at.hour for night in nights] == [5, 5, 0]
    assert [night.decision for night in nights] == [*["too_few_traces"] * 2, "quiet_hours"]


def test_the_day_of_a_budget_of_nothing_is_spent(tmp_path: Path) -> None:
    config = with_field(CONFIG, "daily_budget.max_lm_calls", "0")
    nights = [found["routing"] for found in play(made_scenario([], tmp_path / "spent", config), NIGHTS, Allowance(9))]
    assert {night.decision for night in nights} == {"budget_exhausted"}


def test_nights_are_a_day_apart_and_end_now() -> None:
    now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    assert nights_until(now, 2) == [datetime(2026, 2, 28, 12, 30, tzinfo=UTC), now]
