"""Stored backtests: the newest are kept, and a damaged one hides no other."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from autoopt_pipeline.registry.backtests import KEPT, Backtest, Night, PlayedNights, save_backtest, stored_backtests
from autoopt_pipeline.registry.object_store import ObjectStore

AT = datetime(2026, 1, 31, tzinfo=UTC)


def night(day: int, **found: object) -> Night:
    return Night.model_validate({"at": AT - timedelta(days=30 - day), "decision": "due", "detail": "due", **found})


def backtest(made: datetime, *nights: Night) -> Backtest:
    own = PlayedNights(lm=("stand-in",), stand_in=True, starts_from=None, nights=nights)
    start = AT - timedelta(days=30)
    return Backtest(
        at=made, tenant_id="org:acme", module="routing", start=start, end=AT, traces=5, reviews=2, max_calls=9, own=own
    )


def test_the_newest_ten_are_kept(tmp_path: Path) -> None:
    files = ObjectStore(str(tmp_path))
    for hour in range(KEPT + 2):
        save_backtest(files, backtest(AT + timedelta(hours=hour)))
    stored = list(stored_backtests(files, "org:acme", "routing"))
    assert [each.at for each in stored] == [AT + timedelta(hours=hour) for hour in range(KEPT + 1, 1, -1)]
    assert stored[0] == backtest(AT + timedelta(hours=KEPT + 1))
    assert list(stored_backtests(files, "org:acme", "modality")) == []


def test_a_damaged_backtest_hides_no_other(tmp_path: Path) -> None:
    files = ObjectStore(str(tmp_path))
    save_backtest(files, backtest(AT))
    (folder,) = tmp_path.glob("*/routing/backtests")
    (folder / "20990101T000000000000Z.json").write_text('{"at": 1}')
    assert [each.at for each in stored_backtests(files, "org:acme", "routing")] == [AT]


def test_totals_count_the_reviews_of_a_candidate_once() -> None:
    played = backtest(
        AT,
        night(1, verdict="awaiting_reviews", version="a", reviews_used=3, reviews_asked=20, lm_calls=7, lm_dollars=0.5),
        night(2, verdict="promoted", version="a", reviews_used=9, lm_calls=1, lm_dollars=0.25),
        night(3),
        night(4, failed="the budget is too small", lm_calls=2),
    ).own
    assert (played.reviews_asked, played.reviews_used) == (20, 9)
    assert (played.lm_calls, played.lm_dollars) == (10, pytest.approx(0.75))
    assert [run.at.day for run in played.runs] == [2, 3, 5]
    assert [run.version for run in played.promotions] == ["a"]


def test_an_unknown_price_makes_the_dollars_unknown() -> None:
    assert backtest(AT, night(1, verdict="rejected", lm_dollars=None), night(2)).own.lm_dollars is None
