"""A tenant whose candidate awaits reviews: real traces that nobody has reviewed, and what would be right."""

import random
from dataclasses import dataclass

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, TrafficProfile, sample_truths_for, simulate_requests
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.reader import read_decisions
from tests.support.optimizing import CONFIG, END, ROUTING, START, job, stand_in

UNREVIEWED = TrafficProfile(reviewed=0.0, complains=0.0, malformed=0.0)


@dataclass(frozen=True)
class Truths:
    """The right agent of each query that was sent."""

    by_query: dict[str, str]

    def agent(self, query: str) -> str:
        return self.by_query[normalize_query(query)]


def send_unreviewed(phoenix: Phoenix, tenant: str, count: int = 450) -> Truths:
    rng = random.Random(1)
    truths = list(sample_truths_for(UNREVIEWED, count, rng))
    choices = {"agent": list(SAMPLE_AGENTS), "modality": ["video", "text"]}
    send_traffic(phoenix, tenant, list(simulate_requests(truths, choices, UNREVIEWED, start=START, end=END, rng=rng)))
    return Truths({normalize_query(truth.query): truth.answers["agent"] for truth in truths})


def compare(phoenix: Phoenix, tenant: str, artifacts: VersionStore) -> str:
    """Optimize routing from these traces until reviews decide. Returns the candidate."""
    project = phoenix.project(project_name(tenant))
    assert project
    decisions = read_decisions(phoenix, project, ROUTING, start=START, end=END)
    config = CONFIG.model_copy(update={"tenant_id": tenant})
    report = optimize(job(decisions, config), stand_in(), artifacts)
    assert report.verdict is Verdict.AWAITING_REVIEWS, report.reason
    assert report.version
    return report.version
