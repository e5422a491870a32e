"""Spans of many tenants to Phoenix, each in its tenant's project, over one connection."""

from collections.abc import Callable, Sequence

import requests
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from autoopt_pipeline.addresses import without_secrets
from autoopt_pipeline.contract import PROJECT_TEMPLATE, TENANT_ID
from autoopt_pipeline.secrets import scrub_logs_of
from autoopt_pipeline.serving._fork import begin_in_every_process
from autoopt_pipeline.serving._tracing import SpanRefusals

PROJECT = "openinference.project.name"
"""Resource attribute that names a span's Phoenix project."""

_TIMEOUT_SECONDS = 10

_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)
"""Where OpenTelemetry says why spans could not be sent, and quotes what a server answered."""


class TenantSpans(SpanProcessor):
    """Marks what happens inside a decision as its tenant's too, and hands spans of tenants on, in batches."""

    def __init__(self, make_exporter: Callable[[], SpanExporter]) -> None:
        self._batches = BatchSpanProcessor(ByTenant(make_exporter))

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        parent = trace.get_current_span(parent_context)
        if isinstance(parent, ReadableSpan) and TENANT_ID not in (span.attributes or {}):
            tenant = (parent.attributes or {}).get(TENANT_ID)
            if tenant is not None:
                span.set_attribute(TENANT_ID, tenant)

    def on_end(self, span: ReadableSpan) -> None:
        if TENANT_ID in (span.attributes or {}):
            self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._batches.force_flush(timeout_millis)


class ByTenant(SpanExporter):
    """Gives every span the resource that names its tenant's project.

    OTLP groups the spans of one request by resource, and Phoenix reads the project of each group, so one request
    carries the spans of any number of tenants. A forked child makes an exporter of its own: over the connection of its
    parent's, the two would take each other's answers.
    """

    def __init__(self, make_exporter: Callable[[], SpanExporter]) -> None:
        self._make_exporter = make_exporter
        begin_in_every_process(self)

    def begin(self) -> None:
        self._exporter = self._make_exporter()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        resources: dict[str, Resource] = {}
        for span in spans:
            tenant = str((span.attributes or {})[TENANT_ID])
            if tenant not in resources:
                resources[tenant] = span.resource.merge(Resource({PROJECT: PROJECT_TEMPLATE.format(tenant_id=tenant)}))
        return self._exporter.export(
            [_copy(span, resources[str((span.attributes or {})[TENANT_ID])]) for span in spans]
        )

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def add_phoenix(endpoint: str, api_key: str | None, provider: TracerProvider | None) -> TracerProvider:
    """Send decisions to Phoenix from this provider, the global one, or a new one that is made global."""
    if provider is None:
        current = trace.get_tracer_provider()
        if isinstance(current, TracerProvider):
            provider = current
        else:
            provider = TracerProvider()
            trace.set_tracer_provider(provider)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else None
    address = f"{endpoint.rstrip('/')}/v1/traces"
    refusals = SpanRefusals(without_secrets(endpoint.rstrip("/")))
    scrub_logs_of(*_LOGGERS)

    def make_exporter() -> SpanExporter:
        session = requests.Session()
        session.hooks["response"].append(lambda response, **_: refusals.note(response.status_code, response.text))
        return OTLPSpanExporter(endpoint=address, headers=headers, timeout=_TIMEOUT_SECONDS, session=session)

    provider.add_span_processor(TenantSpans(make_exporter))
    return provider


def _copy(span: ReadableSpan, resource: Resource) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=resource,
        attributes=span.attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
