"""What a run may do in each mode: in `observe` everything but the transition, which a later run makes up for."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from autoopt_pipeline.evaluation.alpha_ledger import alpha_of_charge
from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.optimization.pipeline import estimate, optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.module_versions import read_programs
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import with_field
from tests.support.optimizing import CONFIG, END, decisions, job, stand_in

OBSERVE = with_field(CONFIG, "mode", "observe")


@pytest.fixture(scope="module")
def traffic() -> list[LoggedDecision]:
    return decisions(450)


@pytest.fixture(scope="module")
def run_once(traffic: list[LoggedDecision], tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("observed")
    return optimize(
        job(traffic, OBSERVE), stand_in(), VersionStore(ObjectStore(str(folder)), "acme", "routing")
    ), folder


@pytest.fixture
def observed(run_once: tuple[Report, Path]) -> Report:
    return run_once[0]


@pytest.fixture
def artifacts(run_once: tuple[Report, Path], tmp_path: Path) -> VersionStore:
    """What the observing run left, for each test anew."""
    shutil.copytree(run_once[1], tmp_path / "observed")
    return VersionStore(ObjectStore(str(tmp_path / "observed")), "acme", "routing")


def test_observing_does_everything_but_the_transition(observed: Report, artifacts: VersionStore) -> None:
    assert observed.verdict is Verdict.WOULD_HAVE_PROMOTED
    assert observed.reason.startswith("mode is observe; ")
    assert observed.gate
    assert observed.gate.comparison.gain > 0
    assert artifacts.transitions() == []
    (manifest,) = artifacts.versions()
    assert (manifest.version, manifest.verdict) == (observed.version, "would_have_promoted")
    assert [charge.alpha for charge in artifacts.ledger()] == [alpha_of_charge(1)]


@pytest.mark.parametrize(("mode", "verdict"), [("auto", Verdict.PROMOTED), ("propose", Verdict.AWAITING_APPROVAL)])
def test_another_mode_starts_from_what_was_observed_without_a_second_search(
    mode: str, verdict: Verdict, observed: Report, traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    lm, given = stand_in(), job(traffic, with_field(CONFIG, "mode", mode))
    expected, what = estimate(given, lm, artifacts)
    assert (expected.lm_calls, what) == (0, f"{observed.version} was proven while the mode was observe")
    report = optimize(given, lm, artifacts)
    assert (report.verdict, report.version, lm.meter.calls) == (verdict, observed.version, 0)
    assert "mode is observe" not in report.reason
    assert report.gate
    assert observed.gate
    assert report.gate.comparison == observed.gate.comparison
    assert len(artifacts.ledger()) == 1
    active = artifacts.active()
    assert (active.version if active else None) == (observed.version if mode == "auto" else None)


def test_as_long_as_the_mode_is_observe_nothing_changes(
    observed: Report, traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    again = optimize(job(traffic, OBSERVE), stand_in(), artifacts)
    assert again.verdict is Verdict.WOULD_HAVE_PROMOTED
    assert artifacts.transitions() == []


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"window_end": END - timedelta(days=31)}, "its traces are older than the lookback"),
        ({"lm": "another"}, "it was proven with another, and would ask stand-in"),
    ],
)
def test_what_was_observed_under_other_circumstances_is_proven_again(
    changed: dict[str, Any], why: str, observed: Report, traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    (manifest,) = artifacts.versions()
    artifacts.record_result(manifest.model_copy(update=changed))
    report = optimize(job(traffic), stand_in(), artifacts)
    assert f"{observed.version} was observed to be better, and is not promoted, because {why}" in report.notes
    assert report.tried


def test_a_decision_of_a_person_comes_before_what_was_observed(
    observed: Report, traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    retrain = with_field(CONFIG, "modules.routing.retrain_after", "2999-01-01T00:00:00Z")
    report = optimize(job(traffic, retrain), stand_in(), artifacts)
    assert any("because the module is to be retrained" in note for note in report.notes)
    artifacts.decline(observed.version or "", actor="marta", reason="not now")
    report = optimize(job(traffic), stand_in(), artifacts)
    assert report.verdict is Verdict.REJECTED
    assert any("because the same program was declined" in note for note in report.notes)


def test_a_version_that_was_promoted_by_hand_is_no_longer_only_observed(
    observed: Report, artifacts: VersionStore, tmp_path: Path
) -> None:
    store = ObjectStore(str(tmp_path / "observed"))
    assert observed.version
    programs = read_programs(store, "acme", "routing")
    assert [programs.verdict(manifest) for manifest in programs.manifests] == ["would_have_promoted"]
    artifacts.transition(observed.version, expected=None, actor="marta", reason="convinced")
    programs = read_programs(store, "acme", "routing")
    assert [programs.verdict(manifest) for manifest in programs.manifests] == ["approved"]
