"""What the overview shows: found, sorted, cut into pages."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.dashboard.overview_query import _SORTED_BY, Query, select
from autoopt_pipeline.dashboard.paging import PAGE
from autoopt_pipeline.registry.records import Rollback, Verdict
from autoopt_pipeline.scheduling.conditions import Attempts, Evidence, Reason, RunOutcome, ScheduleDecision
from autoopt_pipeline.status.active_versions import ActiveVersion
from autoopt_pipeline.status.module_status import Health, ModuleStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BACK = Rollback(versions=("v2",), at=NOW, actor="rollout", reason="errors rose")
PROPOSED = RunOutcome(NOW, None, verdict=Verdict.AWAITING_APPROVAL)
TO_REVIEW = RunOutcome(NOW, None, verdict=Verdict.AWAITING_REVIEWS)


def standing(
    tenant: str = "acme", module: str = "routing", reason: Reason = Reason.NOT_DUE, **changes: Any
) -> ModuleStatus:
    fields: dict[str, Any] = {"attempts": Attempts(outcome_at=NOW), **changes}
    return ModuleStatus(tenant, module, ScheduleDecision(reason, "told"), **fields)


@pytest.mark.parametrize(
    ("found", "health"),
    [
        (standing(reason=Reason.ERROR), Health.FAILING),
        (standing(serving=ActiveVersion(error="damaged")), Health.FAILING),
        (standing(reason=Reason.DISABLED, attempts=Attempts(failures=1)), Health.DISABLED),
        (standing(reason=Reason.BACKING_OFF, attempts=Attempts(failures=2)), Health.FAILING),
        (standing(reason=Reason.NOT_DUE, outcome=PROPOSED), Health.NEEDS_APPROVAL),
        (standing(reason=Reason.NOT_DUE, outcome=PROPOSED, decided="approved"), Health.UP_TO_DATE),
        (standing(outcome=TO_REVIEW), Health.NEEDS_REVIEWS),
        (standing(reason=Reason.AWAITING_REVIEWS, outcome=TO_REVIEW), Health.NEEDS_REVIEWS),
        (standing(reason=Reason.DUE, outcome=TO_REVIEW), Health.RUNNING),
        (standing(reason=Reason.IN_PROGRESS, outcome=TO_REVIEW), Health.RUNNING),
        (standing(serving=ActiveVersion("v1", rolled_back=BACK)), Health.UP_TO_DATE),
        (standing(reason=Reason.DUE, serving=ActiveVersion("v1", rolled_back=BACK)), Health.RUNNING),
        (standing(outcome=PROPOSED, serving=ActiveVersion("v1", rolled_back=BACK)), Health.NEEDS_APPROVAL),
        (standing(reason=Reason.IN_PROGRESS), Health.RUNNING),
        (standing(reason=Reason.DUE), Health.RUNNING),
        (standing(), Health.UP_TO_DATE),
        (standing(attempts=Attempts()), Health.COLLECTING),
    ],
)
def test_health_is_the_worst_that_can_be_said(found: ModuleStatus, health: Health) -> None:
    assert found.health is health


def test_what_is_turned_off_is_shown_to_who_looks_for_it() -> None:
    board = [standing("acme"), standing("dormant", reason=Reason.DISABLED)]
    assert [row.tenant_id for row in select(board, Query()).rows] == ["acme"]
    assert [row.tenant_id for row in select(board, Query(text="DORM")).rows] == ["dormant"]
    assert [row.tenant_id for row in select(board, Query(health="disabled")).rows] == ["dormant"]
    assert select(board, Query()).health == {Health.UP_TO_DATE: 1, Health.DISABLED: 1}


def test_the_worst_comes_first_and_any_column_can_be_sorted_both_ways() -> None:
    evidence = {"a": 5, "b": 90, "c": 50}
    board = [
        ModuleStatus(name, "routing", ScheduleDecision(Reason.TOO_FEW_TRACES, "", Evidence(count), 100), Attempts())
        for name, count in evidence.items()
    ] + [standing("broken", reason=Reason.ERROR)]
    assert select(board, Query()).rows[0].tenant_id == "broken"
    assert [row.tenant_id for row in select(board, Query(sort="new")).rows] == ["b", "c", "a", "broken"]
    assert select(board, Query(sort="new", down=True)).rows[0].tenant_id == "broken"
    asked = Query(sort="new", page=3)
    assert asked.sorted_by("new") == "sort=new&down=1"
    assert asked.sorted_by("tenant") == "sort=tenant"


def test_an_address_that_means_nothing_shows_everything() -> None:
    wrong = {"page": "-3", "sort": "nonsense", "health": "great", "down": "x"}
    assert Query.read(wrong) == Query()
    assert select([standing()], Query.read({"page": "99999999"})).query.page == 1


queries = st.builds(
    Query,
    text=st.text("abc", max_size=3),
    health=st.sampled_from(["", *Health]),
    module=st.sampled_from(["", "routing", "modality"]),
    verdict=st.sampled_from(["", "promoted", "rejected"]),
    decision=st.sampled_from(["", *Reason]),
    sort=st.sampled_from(sorted(_SORTED_BY)),
    down=st.booleans(),
)
standings = st.builds(
    ModuleStatus,
    st.text("abcd", min_size=1, max_size=4),
    st.sampled_from(["routing", "modality", "unified"]),
    st.builds(
        ScheduleDecision,
        st.sampled_from(Reason),
        st.just(""),
        st.none() | st.builds(Evidence, st.integers(0, 500)),
        st.none() | st.integers(1, 500),
        st.none() | st.datetimes(timezones=st.just(UTC)),
    ),
    st.builds(Attempts, st.none() | st.datetimes(timezones=st.just(UTC)), failures=st.integers(0, 2)),
    st.none() | st.builds(RunOutcome, st.just(NOW), st.none(), st.sampled_from(["promoted", "rejected"])),
    serving=st.builds(ActiveVersion, score=st.none() | st.floats(0, 1)),
)


@given(
    board=st.lists(standings, max_size=3 * PAGE, unique_by=lambda each: (each.tenant_id, each.module)), query=queries
)
def test_pages_hold_every_match_once_in_one_order(board: Sequence[ModuleStatus], query: Query) -> None:
    first = select(board, query)
    pages = [
        select(reversed(board), Query.read(_params(query.encode(page=number)))) for number in range(1, first.pages + 1)
    ]
    rows = [(row.tenant_id, row.module) for page in pages for row in page.rows]
    assert len(rows) == len(set(rows)) == first.found
    assert rows[:PAGE] == [(row.tenant_id, row.module) for row in first.rows]
    keys = [_SORTED_BY[query.sort](row) for page in pages for row in page.rows]
    assert keys == sorted(keys, reverse=query.down)


def _params(encoded: str) -> dict[str, str]:
    from urllib.parse import parse_qsl

    return dict(parse_qsl(encoded))


def test_ten_thousand_tenants_make_pages_of_the_usual_size() -> None:
    board = [standing(f"tenant-{n}", attempts=Attempts(outcome_at=NOW + timedelta(seconds=n))) for n in range(10_000)]
    page = select(board, Query(sort="last", page=200))
    assert (page.pages, len(page.rows), page.first) == (200, PAGE, 9951)
