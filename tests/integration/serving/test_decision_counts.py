"""What an application tells of the number of its decisions, as a tracer provider exports it."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import dspy
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.serving import Serving, _counts, _phoenix, trace_to_phoenix
from autoopt_pipeline.serving._target import PROJECT
from autoopt_pipeline.span_contract import (
    COUNTS,
    COUNTS_PROJECT,
    COUNTS_SPAN,
    CROSS_MODAL_SPAN,
    MODULE,
    ORCHESTRATION_SPAN,
    ROUTING_SPAN,
    TENANT_ID,
    TENANTS_PER_COUNTS_SPAN,
)
from tests.support.served_decisions import AGENTS

NOWHERE = "http://127.0.0.1:1"
QUERY = "where is the report?"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[ReadableSpan]:
    """Every span that would go to Phoenix."""
    spans: list[ReadableSpan] = []

    class Recorder:
        def export(self, batch: list[ReadableSpan]) -> SpanExportResult:
            spans.extend(batch)
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            pass

    monkeypatch.setattr(_phoenix, "phoenix_exporter", lambda *_, **__: Recorder())
    return spans


@pytest.fixture
def provider(sent: list[ReadableSpan]) -> Iterator[TracerProvider]:
    made = TracerProvider()
    trace_to_phoenix(NOWHERE, tracer_provider=made)
    yield made
    made.shutdown()


def told(sent: list[ReadableSpan]) -> list[dict[str, dict[str, int]]]:
    """The numbers in each of these spans that tells any."""
    summaries = [span for span in sent if span.name == COUNTS_SPAN]
    assert all(span.resource.attributes[PROJECT] == COUNTS_PROJECT for span in summaries)
    assert len({span.context.trace_id for span in summaries if span.context}) == len(summaries)
    return [json.loads(str((span.attributes or {})[COUNTS])) for span in summaries]


def decided(provider: TracerProvider, tenant: str) -> None:
    attributes = {TENANT_ID: tenant, MODULE: "routing"}
    with provider.get_tracer("test").start_as_current_span(ROUTING_SPAN, attributes=attributes):
        provider.get_tracer("test").start_span("inside a decision").end()


def test_every_decision_and_every_feedback_counts_by_tenant_and_name_of_span(
    tmp_path: Path, provider: TracerProvider, sent: list[ReadableSpan]
) -> None:
    lm = dspy.LM("stand-in/nearest-demo", engine=StandInEngine(), cache=False)
    serving = Serving(str(tmp_path), lm=lm, tracer_provider=provider, phoenix_endpoint=NOWHERE)
    for tenant in ("acme", "acme", "globex"):
        decision = serving.decide(tenant, "unified", agents=AGENTS, query=QUERY)
    serving.feedback(decision, correct=True)
    modalities = [{"modality": "video", "confidence": 0.8}, {"modality": "text", "confidence": 0.7}]
    serving.decide("globex", "cross_modal", query=QUERY, modalities=modalities)
    provider.shutdown()
    parts = Counter(
        (str((span.attributes or {})[TENANT_ID]), span.name) for span in sent if MODULE in (span.attributes or {})
    )
    assert parts["acme", ROUTING_SPAN] == 2
    (numbers,) = told(sent)
    assert numbers["acme"] == {ROUTING_SPAN: 2, ORCHESTRATION_SPAN: 2}
    assert numbers["globex"] == {ROUTING_SPAN: 1 + 2, ORCHESTRATION_SPAN: 1 + 1, CROSS_MODAL_SPAN: 1}


def test_many_tenants_are_told_in_several_spans_and_each_number_once(
    provider: TracerProvider, sent: list[ReadableSpan]
) -> None:
    tenants = [f"tenant-{number}" for number in range(2 * TENANTS_PER_COUNTS_SPAN + 1)]
    for tenant in tenants:
        decided(provider, tenant)
    provider.shutdown()
    numbers = told(sent)
    assert [len(each) for each in numbers] == [TENANTS_PER_COUNTS_SPAN, TENANTS_PER_COUNTS_SPAN, 1]
    assert {tenant: counts for each in numbers for tenant, counts in each.items()} == {
        tenant: {ROUTING_SPAN: 1} for tenant in tenants
    }


def test_a_process_tells_once_in_a_while_and_nothing_while_it_decides_nothing(
    provider: TracerProvider, sent: list[ReadableSpan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_counts, "_EVERY_SECONDS", 0.3)
    of_others = timers()
    for rounds in (1, 2):
        decided(provider, "acme")
        decided(provider, "acme")
        wait_until(lambda: timers() <= of_others)
        provider.force_flush()
        assert told(sent) == [{"acme": {ROUTING_SPAN: 2}}] * rounds


def test_what_a_sampler_drops_is_not_counted(sent: list[ReadableSpan]) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF)
    trace_to_phoenix(NOWHERE, tracer_provider=provider)
    decided(provider, "acme")
    provider.shutdown()
    assert sent == []


def test_a_forked_process_tells_of_its_own_decisions_alone() -> None:
    spans: list[ReadableSpan] = []
    counts = _counts.DecisionCounts(spans.append)
    counts.add("acme", ROUTING_SPAN)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        counts.add("globex", ROUTING_SPAN)
        counts.flush()
        os.write(writing, json.dumps(told(spans)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert json.loads(os.read(reading, 10_000)) == [{"globex": {ROUTING_SPAN: 1}}]
    counts.flush()
    assert told(spans) == [{"acme": {ROUTING_SPAN: 1}}]


def timers() -> set[threading.Timer]:
    return {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)}


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)
