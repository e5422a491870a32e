"""Candidates that await reviews, without runs: traces in a real Phoenix, and the step that has drawn them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Annotation, LoggedDecision
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import DrawnTrace, StoredAnswer, Verdict
from autoopt_pipeline.registry.rollout_records import RolloutDraw
from autoopt_pipeline.registry.transitions import active_rollout
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.span_contract import ROUTING, project_name
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.reader import read_decisions
from tests.support.phoenix_traffic import AGENTS, NOW, requests
from tests.support.sequential_tests import made_step

CANDIDATE = "20260101T000000Z-candidat"
INCUMBENT = "20251231T000000Z-incumben"


def await_reviews(home: Path, phoenix: Phoenix, tenant: str, count: int, *, needed: int = 2) -> list[DrawnTrace]:
    """Let a tenant's routing await reviews of `count` new traces, on which its two programs disagree."""
    send_traffic(phoenix, tenant, requests(count, TrafficProfile(reviewed=0, complains=0, malformed=0)))
    drawn = [disagreement(decision) for decision in logged(phoenix, tenant)]
    artifacts = VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), tenant, "routing")
    step = made_step(CANDIDATE, verdict=Verdict.AWAITING_REVIEWS, incumbent=INCUMBENT, labels=AGENTS, drawn=drawn)
    assert artifacts.add_sequential_test_step(step)
    metadata = {
        "window_end": dg.MetadataValue.timestamp(datetime.now(UTC)),
        "verdict": Verdict.AWAITING_REVIEWS.value,
        "version": CANDIDATE,
        "reviews_needed": needed,
        "annotation_total": 0,
        "spans_read": count,
    }
    with open_instance(home) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("routing", partition=tenant, metadata=metadata))
    return drawn


def ask_for_rollout(artifacts: VersionStore, drawn: Sequence[DrawnTrace]) -> None:
    """Let an open rollout ask about these disagreements."""
    rollout = active_rollout(artifacts.last_transition())
    assert rollout
    earlier = artifacts.rollout_draws(rollout.transition)
    draw = RolloutDraw(
        sequence=len(earlier) + 1, at=datetime.now(UTC), attempt="a", lm="stand-in", seen=[], drawn=list(drawn)
    )
    assert artifacts.add_rollout_draw(rollout.transition, draw)


def logged(phoenix: Phoenix, tenant: str) -> list[LoggedDecision]:
    project = phoenix.project(project_name(tenant))
    assert project is not None
    start, end = NOW - timedelta(hours=2), NOW + timedelta(minutes=1)
    return read_decisions(phoenix, project, get_module("routing"), start=start, end=end)


def disagreement(decision: LoggedDecision) -> DrawnTrace:
    """The incumbent says the one agent, and the candidate the other."""
    return DrawnTrace(
        span_id=decision.span_id,
        trace_id=decision.trace_id,
        time=decision.time,
        alike=False,
        incumbent=StoredAnswer(values={"agent": AGENTS[0]}, confidence=0.9),
        candidate=StoredAnswer(values={"agent": AGENTS[1]}, confidence=0.9),
    )


def reviews_of(phoenix: Phoenix, tenant: str, drawn: Sequence[DrawnTrace]) -> dict[str, tuple[Annotation, ...]]:
    """The reviews in Phoenix by span."""
    project = phoenix.project(project_name(tenant))
    assert project is not None
    return phoenix.annotations(project, ROUTING, [trace.span_id for trace in drawn])
