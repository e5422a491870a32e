"""The decision of a run in the manifest of its version."""

from dataclasses import replace
from pathlib import Path

import pytest

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.evaluation.gate import GateDecision
from autoopt_pipeline.optimization.manifests import decision_in, measured
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT
from autoopt_pipeline.registry.records import Manifest, Verdict
from tests.support.stored_programs import FAST, SLOW, artifacts, made_program, manifest_of
from tests.support.verdicts import PROVEN, REPORT


def decided(decision: GateDecision, verdict: Verdict) -> Manifest:
    manifest = manifest_of(made_program("acme"), "v")
    return manifest.model_copy(update=measured(REPORT, decision, verdict, decision.reason))


@pytest.mark.parametrize(
    ("decision", "verdict"),
    [
        (PROVEN, Verdict.PROMOTED),
        (PROVEN, Verdict.AWAITING_APPROVAL),
        (PROVEN, Verdict.WOULD_HAVE_PROMOTED),
        (replace(PROVEN, verdict=Verdict.REJECTED, calibration=None), Verdict.REJECTED),
    ],
)
def test_the_gates_decision_is_read_as_it_was_written_whatever_the_mode_allowed(
    decision: GateDecision, verdict: Verdict, tmp_path: Path
) -> None:
    manifest = decided(decision, verdict)
    assert manifest.verdict == verdict
    assert decision_in(manifest, artifacts(tmp_path)) == decision


@pytest.mark.parametrize("damage", [{"gate": {"alpha": 0.02}}, {"verdict": "splendid"}], ids=["numbers", "verdict"])
def test_a_damaged_manifest_is_named(damage: dict[str, object], tmp_path: Path) -> None:
    manifest = decided(PROVEN, Verdict.PROMOTED).model_copy(update=damage)
    with pytest.raises(InvalidArtifact, match="acme/routing: the manifest of v is damaged"):
        decision_in(manifest, artifacts(tmp_path))


def test_costs_are_kept_from_an_earlier_batch_until_the_candidate_has_new_ones() -> None:
    known = {INCUMBENT: SLOW, CANDIDATE: FAST}
    assert measured(replace(REPORT, costs=known), PROVEN, Verdict.PROMOTED, "")["costs"] == known
    assert "costs" not in measured(replace(REPORT, costs={INCUMBENT: SLOW}), PROVEN, Verdict.PROMOTED, "")
