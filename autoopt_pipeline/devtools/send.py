"""Sends simulated traffic to Phoenix like an application: spans over OTLP, then feedback as annotations."""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode, set_span_in_context

from autoopt_pipeline.devtools.traffic import PlayedRequest
from autoopt_pipeline.errors import PhoenixUnavailable
from autoopt_pipeline.otlp import phoenix_exporter
from autoopt_pipeline.span_contract import NewAnnotation, project_name
from autoopt_pipeline.traces.client import CountRequest, Phoenix

_BATCH = 500
# Phoenix acknowledges spans before it stores them, about 130 a second.
_PATIENCE_SECONDS = 180


def send_traffic(
    phoenix: Phoenix, tenant_id: str, requests: Sequence[PlayedRequest], *, api_key: str | None = None
) -> None:
    """Send requests as spans of the tenant's project, wait until they are stored, then send their reviews.

    Raises `PhoenixUnavailable` if Phoenix does not accept or store them.
    """
    if not requests:
        return
    spans = _spans(tenant_id, requests)
    exporter = phoenix_exporter(phoenix.base_url, api_key, timeout_seconds=30)
    stored_before = _stored(phoenix, tenant_id, requests)
    for start in range(0, len(spans), _BATCH):
        if exporter.export(spans[start : start + _BATCH]) is not SpanExportResult.SUCCESS:
            raise PhoenixUnavailable(f"Phoenix {phoenix.endpoint} takes no spans", "see the server's log")
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _stored(phoenix, tenant_id, requests) < stored_before + len(spans):
        if time.monotonic() > deadline:
            raise PhoenixUnavailable(
                f"Phoenix {phoenix.endpoint} has not stored all spans within {_PATIENCE_SECONDS} s",
                "see the server's log",
            )
        time.sleep(0.3)
    phoenix.annotate(
        [
            NewAnnotation(_hex(span), review.name, review.kind, review.label, review.metadata, review.score)
            for span, played in zip(spans, (played for request in requests for played in request.spans), strict=True)
            for review in played.reviews
        ]
    )


def _spans(tenant_id: str, requests: Sequence[PlayedRequest]) -> tuple[ReadableSpan, ...]:
    memory = InMemorySpanExporter()
    provider = TracerProvider(
        resource=Resource.create({"openinference.project.name": project_name(tenant_id)}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer(__name__)
    for request in requests:
        parent = None
        for played in request.spans:
            span = tracer.start_span(
                played.name, parent, attributes=played.attributes, start_time=_nanoseconds(request.time)
            )
            if played.failed:
                span.set_status(Status(StatusCode.ERROR, "the request failed"))
            span.end(end_time=_nanoseconds(request.time + timedelta(seconds=request.seconds)))
            parent = parent or set_span_in_context(span)
    return memory.get_finished_spans()


def _stored(phoenix: Phoenix, tenant_id: str, requests: Sequence[PlayedRequest]) -> int:
    """Count the spans in the requests' window. Varies its end, because Phoenix on SQLite caches equal counts."""
    end = requests[-1].time + timedelta(seconds=1, microseconds=time.monotonic_ns() % 1_000_000)
    project = phoenix.project(project_name(tenant_id))
    if project is None:
        return 0
    names = sorted({span.name for request in requests for span in request.spans})
    return sum(phoenix.count([CountRequest(project.id, name, requests[0].time, end) for name in names]).values())


def _hex(span: ReadableSpan) -> str:
    context = span.get_span_context()
    return f"{context.span_id:016x}" if context else ""


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000
