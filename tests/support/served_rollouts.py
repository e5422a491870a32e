"""An application that serves the two versions of a rollout, and the monitor that analyzes it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg
import dspy
from opentelemetry.sdk.trace import TracerProvider

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.orchestration.sensors.rollouts import check_rollout
from autoopt_pipeline.registry.rollout_records import indexed_rollouts
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.serving import Decision, Serving, trace_to_phoenix
from tests.support.served_decisions import AGENTS, read


def serve(parts: Connections, artifacts: VersionStore, requests: int, right: Callable[[Decision], bool]) -> None:
    """Let an application answer requests, and a user judge each answer."""
    provider = TracerProvider()
    trace_to_phoenix(parts.phoenix.endpoint, tracer_provider=provider)
    lm = dspy.LM("stand-in/nearest-demo", engine=StandInEngine(), cache=False)
    serving = Serving(
        parts.settings.resolved_artifacts_url, lm=lm, tracer_provider=provider, phoenix_endpoint=parts.phoenix.endpoint
    )
    decisions = [
        serving.decide(artifacts.tenant_id, "routing", agents=AGENTS, query=f"where is {i}?", request_id=f"r{i}")
        for i in range(requests)
    ]
    provider.force_flush()
    read(parts.phoenix, artifacts.tenant_id, "routing", requests)
    for decision in decisions:
        serving.feedback(decision, correct=right(decision))
    assert serving.flush(30)
    provider.shutdown()


def look(instance: dg.DagsterInstance, parts: Connections, artifacts: VersionStore) -> str:
    (watched,) = [each for each in indexed_rollouts(parts.files) if each.tenant_id == artifacts.tenant_id]
    return check_rollout(instance, parts, watched, now=datetime.now(UTC) + timedelta(seconds=1)) or ""
