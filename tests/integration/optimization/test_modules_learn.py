"""Every built-in module learns from generated traffic where there is something to learn, and rejects elsewhere."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, TrafficProfile, sample_truths_for, simulate_requests
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import LoggedDecision, ModuleSpec
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import Agent, LMSettings, RoutingConfigUnified
from tests.support.sample_decisions import as_read

BUILT_IN = ("modality", "routing", "cross_modal", "workflow", "unified")
CONFIG = RoutingConfigUnified(
    tenant_id="acme", agents=[Agent(name=name, description=text) for name, text in SAMPLE_AGENTS.items()]
)
END = datetime(2026, 1, 2, tzinfo=UTC)
START = END - timedelta(days=1)
ENOUGH = 2_000
"""Calls with which each of them learns, if there is something to learn."""
HABITS = {
    "modality": TrafficProfile(),
    "routing": TrafficProfile(),
    "cross_modal": TrafficProfile(fuses=True),
    "workflow": TrafficProfile(plans=True),
    "unified": TrafficProfile(plans=True),
}


def decisions(spec: ModuleSpec, count: int, habits: TrafficProfile, *, seed: int = 3) -> list[LoggedDecision]:
    rng = random.Random(seed)
    choices = {"agent": list(SAMPLE_AGENTS), "modality": [label.name for label in get_module("modality").labels or ()]}
    truths = list(sample_truths_for(habits, count, rng))
    return as_read(spec, list(simulate_requests(truths, choices, habits, start=START, end=END, rng=rng)))


def run(spec: ModuleSpec, given: list[LoggedDecision], folder: Path, *, calls: int) -> tuple[Report, VersionStore]:
    artifacts = VersionStore(ObjectStore(str(folder)), "acme", spec.name)
    lm = metered_lm(LMSettings(model="stand-in"), Meter(calls, 10**9))
    return optimize(OptimizationJob(spec, CONFIG, given, START, END, "run"), lm, artifacts), artifacts


@pytest.mark.parametrize("module", BUILT_IN)
def test_a_module_learns_and_twice_the_same(module: str, tmp_path: Path) -> None:
    spec = get_module(module)
    given = decisions(spec, 500, HABITS[module], seed=4)
    report, artifacts = run(spec, given, tmp_path / "once", calls=ENOUGH)
    assert report.verdict is Verdict.PROMOTED, report.reason
    assert report.gate is not None
    assert report.gate.comparison.gain > 0.08
    shuffled = random.Random(5).sample(given, len(given))
    again, others = run(spec, shuffled, tmp_path / "twice", calls=ENOUGH)
    assert again.version == report.version
    assert others.load(report.version or "").encode() == artifacts.load(report.version or "").encode()


@pytest.mark.parametrize("module", BUILT_IN)
def test_a_module_rejects_where_right_answers_do_not_depend_on_the_query(module: str, tmp_path: Path) -> None:
    spec = get_module(module)
    habits = replace(HABITS[module], answers_depend_on_query=False, right=0.0)
    report, artifacts = run(spec, decisions(spec, 450, habits), tmp_path, calls=ENOUGH)
    assert report.verdict in {Verdict.REJECTED, Verdict.INCONCLUSIVE}, report.reason
    assert artifacts.active() is None
