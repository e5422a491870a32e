"""One optimization of routing, with traffic that is played and the stand-in for a model."""

import random
from datetime import UTC, datetime, timedelta

from autoopt_pipeline.devtools.traffic import (
    SAMPLE_AGENTS,
    PlayedRequest,
    TrafficProfile,
    sample_truths_for,
    simulate_requests,
)
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.tenants.config import Agent, LMSettings, RoutingConfigUnified
from tests.support.sample_decisions import as_read

ROUTING = get_module("routing")
CONFIG = RoutingConfigUnified(tenant_id="acme", agents=[Agent(name=name) for name in SAMPLE_AGENTS])
END = datetime(2026, 1, 2, tzinfo=UTC)
START = END - timedelta(days=1)


def played(count: int, habits: TrafficProfile | None = None, *, seed: int = 1) -> list[PlayedRequest]:
    rng = random.Random(seed)
    habits = habits or TrafficProfile()
    choices = {"agent": list(SAMPLE_AGENTS), "modality": [label.name for label in get_module("modality").labels or ()]}
    return list(
        simulate_requests(list(sample_truths_for(habits, count, rng)), choices, habits, start=START, end=END, rng=rng)
    )


def decisions(count: int, habits: TrafficProfile | None = None, *, seed: int = 1) -> list[LoggedDecision]:
    return as_read(ROUTING, played(count, habits, seed=seed))


def job(given: list[LoggedDecision], config: RoutingConfigUnified = CONFIG, run_id: str = "run") -> OptimizationJob:
    return OptimizationJob(ROUTING, config, given, START, END, run_id)


def stand_in(max_calls: int = 6000) -> MeteredLM:
    return metered_lm(LMSettings(model="stand-in"), Meter(max_calls, 10**9))
