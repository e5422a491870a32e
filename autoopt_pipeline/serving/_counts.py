"""Tells Phoenix how many decisions each tenant had, so that the sensor need not ask about every tenant.

The numbers are hints. Of what is lost with a process, Phoenix is asked later; of what is sent twice, earlier.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from autoopt_pipeline.serving._fork import begin_in_every_process
from autoopt_pipeline.serving._target import PROJECT
from autoopt_pipeline.span_contract import COUNTS, COUNTS_PROJECT, COUNTS_SPAN, TENANTS_PER_COUNTS_SPAN

_EVERY_SECONDS = 60.0

_IDS = RandomIdGenerator()
_RESOURCE = Resource({PROJECT: COUNTS_PROJECT})
_SCOPE = InstrumentationScope("autoopt_pipeline.serving")


class DecisionCounts:
    """Counts decisions and feedback by tenant and name of span, and hands spans that say so to `send`.

    A thread does that a minute after the first decision, so a process without decisions has none and sends nothing.
    """

    def __init__(self, send: Callable[[ReadableSpan], None]) -> None:
        self._send = send
        begin_in_every_process(self)

    def begin(self) -> None:
        """Create the state of this process."""
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}
        self._timer: threading.Timer | None = None

    def add(self, tenant_id: str, span_name: str) -> None:
        with self._lock:
            self._counts.setdefault(tenant_id, Counter())[span_name] += 1
            if self._timer is None:
                self._timer = threading.Timer(_EVERY_SECONDS, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Hand over what was counted since the last time."""
        with self._lock:
            counts, self._counts = self._counts, {}
            if self._timer:
                self._timer.cancel()
            self._timer = None
        tenants = iter(counts.items())
        while some := dict(islice(tenants, TENANTS_PER_COUNTS_SPAN)):
            self._send(_span(some))


def _span(counts: dict[str, Counter[str]]) -> ReadableSpan:
    now = time.time_ns()
    sampled = TraceFlags(TraceFlags.SAMPLED)
    return ReadableSpan(
        COUNTS_SPAN,
        SpanContext(_IDS.generate_trace_id(), _IDS.generate_span_id(), is_remote=False, trace_flags=sampled),
        resource=_RESOURCE,
        attributes={COUNTS: json.dumps(counts)},
        start_time=now,
        end_time=now,
        instrumentation_scope=_SCOPE,
    )
