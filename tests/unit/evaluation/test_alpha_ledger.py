from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.evaluation.alpha_ledger import FAMILY_ALPHA, alpha_of_charge, next_charge
from autoopt_pipeline.evaluation.statistics import sign_flip_p
from autoopt_pipeline.registry.records import LedgerEntry

AT = datetime(2026, 1, 1, tzinfo=UTC)


def charge(
    entries: list[LedgerEntry],
    candidate: str,
    holdout: str = "h",
    incumbent: str | None = None,
    *,
    attempt: str = "run",
    epoch: int = 0,
) -> LedgerEntry:
    return next_charge(
        entries,
        attempt=attempt,
        epoch=epoch,
        at=AT,
        candidate_digest=candidate,
        holdout_digest=holdout,
        incumbent=incumbent,
    )


def test_all_charges_together_never_exceed_the_allowance() -> None:
    spent = sum(alpha_of_charge(k) for k in range(1, 100_000))
    assert spent < FAMILY_ALPHA
    rest = FAMILY_ALPHA * 2 / 2.612 / 100_000**0.5  # the integral of the tail
    assert spent + rest == pytest.approx(FAMILY_ALPHA, rel=1e-4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from("xyz"),
            st.sampled_from([None, "v1", "v2"]),
            st.sampled_from(["run 1", "run 2"]),
            st.integers(0, 2),
        ),
        max_size=60,
    )
)
def test_whatever_happens_the_charges_between_two_promotions_stay_within_the_allowance(
    wanted: list[tuple[str, str, str | None, str, int]],
) -> None:
    entries: list[LedgerEntry] = []
    for candidate, holdout, incumbent, attempt, epoch in wanted:
        entry = charge(entries, candidate, holdout, incumbent, attempt=attempt, epoch=epoch)
        if entry not in entries:
            entries.append(entry)
    for epoch in range(3):
        assert sum(entry.alpha for entry in entries if entry.epoch == epoch) <= FAMILY_ALPHA
    assert len({entry.sequence for entry in entries}) == len(entries)


def test_each_look_at_a_holdout_may_risk_less_than_the_one_before() -> None:
    entries: list[LedgerEntry] = []
    for night in range(5):
        entries.append(charge(entries, f"candidate {night}"))
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.alpha for entry in entries] == [alpha_of_charge(k) for k in (1, 2, 3, 4, 5)]


def test_a_year_of_weekly_rejections_leaves_alpha_for_a_real_gain() -> None:
    twenty_fixed_two_broken = [1.0] * 20 + [-1.0] * 2
    assert sign_flip_p(twenty_fixed_two_broken) < alpha_of_charge(52)


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
    assert charge([first], "next", incumbent="v1", epoch=1).alpha == first.alpha


def test_another_incumbent_without_a_promotion_does_not() -> None:
    first = charge([], "candidate")
    assert charge([first], "next", incumbent="the same without a forgotten trace").alpha == alpha_of_charge(2)


def test_the_same_look_in_another_run_is_another_look_for_a_model_may_answer_otherwise() -> None:
    first = charge([], "candidate")
    assert charge([first], "candidate", attempt="another run").alpha == alpha_of_charge(2)
