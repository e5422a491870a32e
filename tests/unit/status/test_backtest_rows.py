"""A backtest as people read it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from autoopt_pipeline.registry.backtests import Backtest, Night, PlayedNights
from autoopt_pipeline.status.backtest_rows import rows_of, summary_of, variants_of

AT = datetime(2026, 1, 1, tzinfo=UTC)
SKIPPED = {"decision": "too_few_traces", "detail": "5 new traces, 100 needed"}
WAITS = {"decision": "due", "detail": "", "verdict": "awaiting_reviews", "reason": "9 of 9 wait", "version": "v"}
PROMOTED = {"decision": "due", "detail": "", "verdict": "promoted", "reason": "better", "version": "v"}


def played(*found: Mapping[str, object]) -> PlayedNights:
    nights = [Night.model_validate({"at": AT + timedelta(days=day), **each}) for day, each in enumerate(found)]
    return PlayedNights(lm=("stand-in",), stand_in=True, starts_from=None, nights=tuple(nights))


def backtest(own: PlayedNights, other: PlayedNights | None = None) -> Backtest:
    return Backtest(
        at=AT,
        tenant_id="acme",
        module="routing",
        start=AT - timedelta(days=1),
        end=AT + timedelta(days=9),
        traces=1,
        reviews=0,
        max_calls=1,
        own=own,
        changes={"mode": "propose"} if other else {},
        other=other,
    )


def dates(result: Backtest) -> Sequence[str]:
    return [row.dates for row in rows_of(result)]


def test_nights_with_the_same_result_are_one_row() -> None:
    asked = {**WAITS, "reviews_asked": 9, "lm_calls": 40}
    assert dates(backtest(played(SKIPPED, SKIPPED, asked, WAITS, WAITS, PROMOTED))) == [
        "2026-01-01 to 2026-01-02",
        "2026-01-03",
        "2026-01-04 to 2026-01-05",
        "2026-01-06",
    ]


def test_a_row_has_the_nights_of_both_variants_and_the_shorter_one_ends() -> None:
    result = backtest(played(SKIPPED, SKIPPED, PROMOTED), played(SKIPPED, PROMOTED))
    assert list(variants_of(result)) == ["own settings", "with mode=propose"]
    rows = list(rows_of(result))
    assert [row.dates for row in rows] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert [[night and night.verdict for night in row.last] for row in rows] == [
        [None, None],
        [None, "promoted"],
        ["promoted", None],
    ]


def test_totals_are_words() -> None:
    totals = summary_of(played(SKIPPED, {**PROMOTED, "lm_calls": 1200, "reviews_used": 30}))
    assert totals["starts from"] == "baseline"
    assert (totals["runs"], totals["promoted"]) == ("1", "v on 2026-01-02")
    assert (totals["LM calls"], totals["reviews used"]) == ("1,200", "30")
    assert totals["language models"] == "stand-in (not a language model)"
    assert summary_of(played(SKIPPED))["promoted"] == "nothing"
