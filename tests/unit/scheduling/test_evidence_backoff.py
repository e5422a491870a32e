import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.scheduling.evidence_backoff import evidence_required

counts = st.integers(0, 1_000_000)


@given(st.integers(1, 10_000), counts, st.sampled_from(["", *Verdict]))
def test_the_tenants_own_setting_is_always_the_least(min_samples: int, decisions: int, verdict: str) -> None:
    assert evidence_required(min_samples, decisions, verdict) >= min_samples


MORE = [Verdict.REJECTED, Verdict.AWAITING_APPROVAL, Verdict.WOULD_HAVE_PROMOTED]


@pytest.mark.parametrize("verdict", ["", *(verdict for verdict in Verdict if verdict not in MORE)])
def test_other_verdicts_ask_for_no_more(verdict: str) -> None:
    assert evidence_required(100, 100_000, verdict) == 100


@pytest.mark.parametrize("verdict", MORE)
def test_after_a_rejection_and_before_an_approval_a_quarter_of_what_it_had_must_be_new(verdict: str) -> None:
    assert evidence_required(100, 4001, verdict) == 1001
    assert evidence_required(100, 200, verdict) == 100
