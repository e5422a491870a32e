"""What a version may do that passed the gate, by mode and by what its decisions cost."""

from dataclasses import replace

import pytest

from autoopt_pipeline.evaluation.not_worse import NotWorse
from autoopt_pipeline.optimization.promotion import allowed, verdict_of
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT, ProgramCost
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from tests.support.stored_programs import FAST
from tests.support.verdicts import PROVEN

AUTO, PROPOSE, OBSERVE = Verdict.PROMOTED, Verdict.AWAITING_APPROVAL, Verdict.WOULD_HAVE_PROMOTED


def config(**fields: object) -> RoutingConfigUnified:
    return RoutingConfigUnified.model_validate({"tenant_id": "acme", **fields})


def costs(times: float) -> dict[str, ProgramCost]:
    """Costs of a candidate whose decisions cost so many times as many dollars as the incumbent's."""
    dollars = (FAST.dollars or 0) * times
    return {INCUMBENT: FAST, CANDIDATE: FAST.model_copy(update={"dollars": dollars})}


@pytest.mark.parametrize(
    ("mode", "times", "verdict", "reason"),
    [
        ("auto", 3, AUTO, "proven"),
        ("auto", 3.1, PROPOSE, "a decision costs 3.1 times as much, and objective.max_cost_increase is 3; proven"),
        ("propose", 1, PROPOSE, "mode is propose; proven"),
        ("observe", 1, OBSERVE, "mode is observe; proven"),
    ],
)
def test_the_mode_and_the_cost_say_what_a_proven_version_may_do(
    mode: str, times: float, verdict: Verdict, reason: str
) -> None:
    assert allowed("proven", config(mode=mode), "routing", costs(times)) == (verdict, reason)


def test_a_version_that_must_not_serve_yet_says_also_that_it_is_dear() -> None:
    _, reason = allowed("proven", config(mode="observe"), "routing", costs(4))
    assert reason.startswith("mode is observe; a decision costs 4.0 times as much")


def test_the_mode_of_a_module_counts_and_not_that_of_its_tenant() -> None:
    own = config(mode="auto", modules={"routing": {"mode": "propose"}})
    assert allowed("proven", own, "routing", {})[0] is PROPOSE
    assert allowed("proven", own, "modality", {})[0] is AUTO


def test_where_a_price_is_unknown_there_is_no_limit() -> None:
    unknown = {name: cost.model_copy(update={"dollars": None}) for name, cost in costs(9).items()}
    assert allowed("proven", config(mode="auto"), "routing", unknown) == (AUTO, "proven")


@pytest.mark.parametrize("mode", ["auto", "propose", "observe"])
def test_only_what_passed_the_gate_needs_to_be_allowed(mode: str) -> None:
    rejected = replace(PROVEN, verdict=Verdict.REJECTED, reason="not better")
    decided = verdict_of(rejected, config(mode=mode), "routing", costs(9), same_lms=True)
    assert decided == (Verdict.REJECTED, "not better")


def test_fewer_tokens_of_another_model_are_no_saving() -> None:
    cheaper = replace(
        PROVEN, reason="as good", not_worse=NotWorse(0.02, proven=True, p_value=0.01, drawn=300, needed=300)
    )
    half = FAST.model_copy(update={"dollars": None, "input_tokens": FAST.input_tokens / 2, "output_tokens": 0})
    paid = {INCUMBENT: FAST, CANDIDATE: half}
    reasons = [verdict_of(cheaper, config(mode="auto"), "routing", paid, same_lms=same)[1] for same in (True, False)]
    assert reasons == ["as good; a decision costs 52 % less", "as good"]
