"""A tenant's traffic, and its traces in a real Phoenix."""

import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import format_span_id

from autoopt_pipeline.devtools.traffic import PlayedRequest, SyntheticRequest, TrafficProfile, simulate_requests
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.traces.client import Phoenix

NOW = datetime.now(UTC).replace(microsecond=0)
AGENTS = ["search_agent", "report_agent"]
ALL_REVIEWED = TrafficProfile(reviewed=1.0, malformed=0.0)


def requests(
    count: int, habits: TrafficProfile = ALL_REVIEWED, *, end: datetime = NOW, seed: int = 1
) -> list[PlayedRequest]:
    truths = [SyntheticRequest(f"question number {i}", {"agent": AGENTS[i % 2]}) for i in range(count)]
    start = end - timedelta(hours=1)
    return list(simulate_requests(truths, {"agent": AGENTS}, habits, start=start, end=end, rng=random.Random(seed)))


def trace_count(phoenix: Phoenix, tenant: str) -> int:
    """The traces in a tenant's project, whatever their spans are called."""
    answer = httpx.get(f"{phoenix.endpoint}/v1/projects/{project_name(tenant)}/traces", params={"limit": 1000})
    return len(answer.raise_for_status().json()["data"]) if answer.status_code != 404 else 0


def wait_for(phoenix: Phoenix, tenant: str, traces: int) -> None:
    """Wait until Phoenix has stored so many traces."""
    for _ in range(200):
        if trace_count(phoenix, tenant) == traces:
            return
        threading.Event().wait(0.1)
    raise AssertionError("the spans were not stored")


def sender_of_spans(phoenix: Phoenix, tenant: str) -> Callable[[str, dict], str]:
    """Sends one span of the tenant, and returns its id."""
    provider = TracerProvider(resource=Resource({"openinference.project.name": project_name(tenant)}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{phoenix.endpoint}/v1/traces")))

    def send(name: str, attributes: dict) -> str:
        with provider.get_tracer("t").start_as_current_span(name) as span:
            span.set_attributes(attributes)
        return format_span_id(span.get_span_context().span_id)

    return send
