"""Sends spans of many tenants to Phoenix over one connection, each to its tenant's project."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

import requests
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from autoopt_pipeline.errors import PhoenixRefused
from autoopt_pipeline.otlp import PhoenixSession, phoenix_exporter
from autoopt_pipeline.secrets import scrub_logs_of
from autoopt_pipeline.serving._answers import Problem
from autoopt_pipeline.serving._counts import DecisionCounts
from autoopt_pipeline.serving._fork import begin_in_every_process
from autoopt_pipeline.serving._target import PROJECT, Target, set_target
from autoopt_pipeline.span_contract import MODULE, PROJECT_TEMPLATE, TENANT_ID
from autoopt_pipeline.urls import without_secrets

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 10

# OpenTelemetry's loggers for failed exports, which quote the server's response.
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)


class TenantSpans(SpanProcessor):
    """Marks spans inside a decision with its tenant, exports the spans of tenants in batches, and counts decisions."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._batches = BatchSpanProcessor(exporter)
        self.counts = DecisionCounts(self._batches.on_end)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        parent = trace.get_current_span(parent_context)
        if isinstance(parent, ReadableSpan) and TENANT_ID not in (span.attributes or {}):
            tenant = (parent.attributes or {}).get(TENANT_ID)
            if tenant is not None:
                span.set_attribute(TENANT_ID, tenant)

    def on_end(self, span: ReadableSpan) -> None:
        attributes = span.attributes or {}
        if TENANT_ID in attributes:
            self._batches.on_end(span)
            if MODULE in attributes and span.context and span.context.trace_flags.sampled:
                self.counts.add(str(attributes[TENANT_ID]), span.name)

    def shutdown(self) -> None:
        self.counts.flush()
        self._batches.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._batches.force_flush(timeout_millis)


class ByTenant(SpanExporter):
    """Sets the resource of every span to its tenant's project.

    OTLP groups the spans of a request by resource, and Phoenix reads the project of each group, so one request can
    carry spans of any number of tenants. A forked child creates its own exporter: on a shared connection, parent and
    child would read each other's responses.
    """

    def __init__(self, endpoint: str, api_key: str | None) -> None:
        self._endpoint = endpoint
        self._api_key = api_key
        begin_in_every_process(self)

    def begin(self) -> None:
        """Create the state of this process."""
        self._problem: Problem | None = None
        self._session = PhoenixSession()
        self._exporter = phoenix_exporter(
            self._endpoint, self._api_key, timeout_seconds=_TIMEOUT_SECONDS, session=self._session
        )

    @property
    def problem(self) -> Problem | None:
        """Why Phoenix does not receive spans, or None if it does."""
        return self._problem

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        resources: dict[str, Resource] = {}
        copies = []
        for span in spans:
            tenant = (span.attributes or {}).get(TENANT_ID)
            if tenant is None:  # counts of many tenants
                copies.append(span)
                continue
            tenant = str(tenant)
            if tenant not in resources:
                resources[tenant] = span.resource.merge(Resource({PROJECT: PROJECT_TEMPLATE.format(tenant_id=tenant)}))
            copies.append(_copy(span, resources[tenant]))
        result = self._exporter.export(copies)
        if result is SpanExportResult.SUCCESS:
            self._problem = None
        else:
            self._note_failure()
        return result

    def _note_failure(self) -> None:
        problem, remedy = _describe_failure(without_secrets(self._endpoint), self._session.last)
        if self._problem is None or self._problem.what != problem:
            logger.warning("spans are lost: %s -> %s", problem, remedy)
            self._problem = Problem("spans", problem, remedy, datetime.now(UTC))

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def add_phoenix(endpoint: str, api_key: str | None, provider: TracerProvider | None) -> TracerProvider:
    """Send decisions from this provider to Phoenix. Without one, use the global provider, or make a new one global."""
    if provider is None:
        current = trace.get_tracer_provider()
        if isinstance(current, TracerProvider):
            provider = current
        else:
            provider = TracerProvider()
            trace.set_tracer_provider(provider)
    scrub_logs_of(*_LOGGERS)
    exporter = ByTenant(endpoint, api_key)
    spans = TenantSpans(exporter)
    provider.add_span_processor(spans)
    set_target(provider, Target(endpoint, api_key, lambda: exporter.problem, spans.counts.add))
    return provider


def _describe_failure(endpoint: str, last: requests.Response | Exception | None) -> tuple[str, str]:
    """Return a problem and its remedy. Omits the error's own text, which may contain an address with a password."""
    takes_none = f"Phoenix {endpoint} takes no spans"
    if isinstance(last, requests.exceptions.SSLError):
        return (
            f"{takes_none}: no trusted authority signed its certificate",
            "name the authority's file in SSL_CERT_FILE",
        )
    if isinstance(last, requests.Response):
        if last.status_code in {401, 403}:
            refused = PhoenixRefused.of_key(endpoint, last.status_code, last.text)
            return refused.what, refused.remedy
        remedy = "check that AUTOOPT_PHOENIX_ENDPOINT is Phoenix's own address, and see its log"
        return f"{takes_none}: HTTP {last.status_code}", remedy
    return f"{takes_none}: {type(last).__name__}", "check AUTOOPT_PHOENIX_ENDPOINT and that Phoenix is up"


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
