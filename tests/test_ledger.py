from datetime import UTC, datetime

import pytest

from autoopt_pipeline.artifacts.store import LedgerEntry
from autoopt_pipeline.optimization.ledger import FAMILY_ALPHA, alpha_of_look, next_charge

AT = datetime(2026, 1, 1, tzinfo=UTC)


def charge(entries: list[LedgerEntry], candidate: str, holdout: str = "h", incumbent: str | None = None) -> LedgerEntry:
    return next_charge(entries, at=AT, candidate_digest=candidate, holdout_digest=holdout, incumbent=incumbent)


def test_all_looks_together_never_exceed_the_allowance() -> None:
    assert sum(alpha_of_look(k) for k in range(1, 100_000)) < FAMILY_ALPHA
    assert sum(alpha_of_look(k) for k in range(1, 100_000)) == pytest.approx(FAMILY_ALPHA, rel=1e-3)


def test_each_look_at_a_holdout_costs_more_than_the_one_before() -> None:
    entries: list[LedgerEntry] = []
    for night in range(5):
        entries.append(charge(entries, f"candidate {night}"))
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.alpha for entry in entries] == [alpha_of_look(k) for k in (1, 2, 3, 4, 5)]


def test_a_retried_run_is_the_same_look() -> None:
    first = charge([], "candidate")
    assert charge([first, charge([first], "other")], "candidate") == first


def test_the_same_candidate_on_more_traces_is_another_look() -> None:
    first = charge([], "candidate")
    assert charge([first], "candidate", holdout="more").alpha < first.alpha


def test_a_lost_entry_does_not_block_the_next_look() -> None:
    first = charge([], "one")
    third = charge([first], "two").model_copy(update={"sequence": 3})
    assert charge([first, third], "three").sequence == 4


def test_a_promotion_starts_a_new_allowance() -> None:
    first = charge([], "candidate")
    assert charge([first], "next", incumbent="v1").alpha == first.alpha
