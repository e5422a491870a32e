"""Writes decisions as spans in the layout of the span contract, with the application's tracer provider.

Tracing errors never affect a request: they are logged once, and the request is answered.
"""

import logging
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import INVALID_SPAN, Link, Span, Status, StatusCode, TracerProvider

from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.secrets import scrub, scrub_error, scrub_logs_of
from autoopt_pipeline.serving._answers import Loaded, Problem, version_name
from autoopt_pipeline.serving._forms import Attributes, span_attributes, storable
from autoopt_pipeline.span_contract import ARM, MODULE, PROGRAM_VERSION, REQUEST_ID, TENANT_ID

logger = logging.getLogger(__name__)
scrub_logs_of(__name__)


class Recording:
    """The spans of one decision in progress. They are written when the answer or the failure is known."""

    def __init__(
        self,
        tracing: "Tracing",
        main: Span,
        spec: ModuleSpec,
        loaded: Loaded,
        head: Attributes,
        inputs: Mapping[str, Any],
    ) -> None:
        self._tracing = tracing
        self._main = main
        self._spec = spec
        self._loaded = loaded
        self._head = head
        self._inputs = inputs
        self.sampled = spec.contract.review_sample[0] in head
        self.trace_id: str | None = None
        self.spans: dict[str, str] = {}

    def answered(self, values: Mapping[str, Any], confidence: float | None) -> None:
        """Record the request and its answer. A composed module records each part where its examples are read."""
        if not self._main.is_recording():  # no provider, or its sampler dropped this trace
            return
        with self._tracing.never_raising():
            spans = {self._spec.contract.span_name: self._main}
            for part in self._spec.parts or (self._spec,):
                name = part.contract.span_name
                if name not in spans:
                    spans[name] = self._tracing.tracer.start_span(name, attributes=self._head)
                self._tracing.write(spans[name], span_attributes(part.contract, self._inputs, values, confidence))
                if version := self._loaded.parts.get(part.name):
                    spans[name].set_attribute(PROGRAM_VERSION, version)
            for span in spans.values():
                if span is not self._main:
                    span.end()
            self.trace_id = f"{self._main.get_span_context().trace_id:032x}"
            self.spans = {
                part.name: f"{spans[part.contract.span_name].get_span_context().span_id:016x}"
                for part in (*self._spec.parts, self._spec)
            }

    def failed(self, error: BaseException) -> None:
        """Record the request and why it has no answer."""
        with self._tracing.never_raising():
            self._tracing.write(self._main, span_attributes(self._spec.contract, self._inputs, {}, None))
            clean = scrub_error(error)
            if isinstance(clean, Exception):
                stack = "".join(traceback.format_exception(clean))
                details = {"exception.message": str(clean), "exception.stacktrace": stack}
                self._main.record_exception(clean, attributes=storable(details))
            self._main.set_status(Status(StatusCode.ERROR, storable(scrub(f"{type(error).__name__}: {error}"))))


class Tracing:
    """Starts and ends the spans of decisions.

    With `own_traces` each decision gets its own trace with a link to the request's trace, instead of a span in it.
    """

    def __init__(self, provider: TracerProvider | None, *, own_traces: bool) -> None:
        self.tracer = trace.get_tracer("autoopt_pipeline.serving", tracer_provider=provider)
        self._own_traces = own_traces
        self._logged = False
        self._problem: Problem | None = None
        with self.never_raising():
            from opentelemetry.sdk.trace import SpanLimits

            if limit := SpanLimits().max_span_attribute_length:
                self._note_limit(limit)

    @property
    def problem(self) -> Problem | None:
        """Set if this process truncates span attributes."""
        return self._problem

    def write(self, span: Span, attributes: Attributes) -> None:
        """Set attributes and check that none is truncated, because a truncated query is not learnt from."""
        span.set_attributes(attributes)
        written: Mapping[str, Any] = getattr(span, "attributes", None) or {}
        for name, value in attributes.items():
            kept = written.get(name)
            if isinstance(value, str) and isinstance(kept, str) and len(kept) < len(value):
                self._note_limit(len(kept))

    def _note_limit(self, limit: int) -> None:
        if self._problem is None:
            problem = (
                f"this process cuts attributes of spans after {limit} characters, and what is cut is not learnt from"
            )
            remedy = "raise or unset OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT, or the limit of your TracerProvider"
            logger.warning("%s -> %s", problem, remedy)
            self._problem = Problem("tracing", problem, remedy, datetime.now(UTC))

    @contextmanager
    def decision(
        self,
        tenant_id: str,
        spec: ModuleSpec,
        loaded: Loaded,
        request_id: str | None,
        inputs: Mapping[str, Any],
        *,
        sampled: bool,
    ) -> Generator[Recording, None, None]:
        """Open a decision's span and make it current. An exception in the body fails the span and propagates.

        The draw for review is recorded at the start, before the outcome can be known.
        """
        head: Attributes = {
            "openinference.span.kind": "CHAIN",
            TENANT_ID: tenant_id,
            MODULE: spec.name,
            ARM: loaded.arm,
            PROGRAM_VERSION: version_name(loaded.version),
        }
        if request_id is not None:
            head[REQUEST_ID] = storable(request_id)
        if sampled:
            head[spec.contract.review_sample[0]] = True
        span, token = INVALID_SPAN, None
        with self.never_raising():
            around = trace.get_current_span().get_span_context()
            apart = self._own_traces and around.is_valid
            span = self.tracer.start_span(
                spec.contract.span_name,
                context=context.Context() if apart else None,
                links=[Link(around)] if apart else None,
                attributes=head,
            )
            token = context.attach(trace.set_span_in_context(span))
        recording = Recording(self, span, spec, loaded, head, inputs)
        try:
            yield recording
        except BaseException as e:
            recording.failed(e)
            raise
        finally:
            with self.never_raising():
                if token is not None:
                    context.detach(token)
                span.end()

    @contextmanager
    def never_raising(self) -> Generator[None, None, None]:
        try:
            yield
        except Exception:
            if not self._logged:
                self._logged = True
                logger.warning("tracing of decisions fails; they are made all the same", exc_info=True)
