"""Decisions in a real Phoenix: in their tenant's project, read back as examples, with feedback."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import httpx
import pytest
from dspy.lm15 import Request, Response
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from autoopt_pipeline.errors import InvalidRequest, PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Provenance
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.serving import Decision, Serving, trace_to_phoenix
from autoopt_pipeline.serving import _feedback as sending
from autoopt_pipeline.span_contract import ARM, PROGRAM_VERSION, REQUEST_ID, REVIEW_SAMPLE, TENANT_ID, project_name
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.reader import join_parts
from tests.support.project import PROJECT
from tests.support.served_decisions import AGENTS, examples, read
from tests.support.stored_programs import made_program, store

ON_POSTGRES_TOO = True
QUERY = "where is the report?"


@pytest.fixture
def lm() -> dspy.LM:
    return dspy.LM("stand-in/nearest-demo", engine=StandInEngine(), cache=False)


@pytest.fixture
def provider(phoenix: Phoenix) -> Iterator[TracerProvider]:
    made = TracerProvider()
    trace_to_phoenix(phoenix.endpoint, tracer_provider=made)
    yield made
    made.shutdown()


@pytest.fixture
def serve(tmp_path: Path, lm: dspy.LM, phoenix: Phoenix, provider: TracerProvider) -> Callable[..., Serving]:
    (tmp_path / "another-tenant").mkdir()

    def make(**more: Any) -> Serving:
        given: dict[str, Any] = {
            "lm": lm,
            "tracer_provider": provider,
            "phoenix_endpoint": phoenix.endpoint,
            "refresh_seconds": 3600,
        }
        return Serving(str(tmp_path), **(given | more))

    return make


def memory_provider() -> tuple[TracerProvider, InMemorySpanExporter]:
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return provider, memory


class TestSpans:
    def test_each_tenants_decisions_land_in_its_own_project_over_one_connection(
        self, serve: Callable[..., Serving], phoenix: Phoenix, provider: TracerProvider
    ) -> None:
        serving = serve()
        tenants = [f"{uuid.uuid4().hex[:8]}:{number}" for number in range(20)]
        decisions = {t: serving.decide(t, "routing", agents=AGENTS, query=f"{QUERY} {t}") for t in tenants}
        provider.force_flush()
        for tenant, decision in decisions.items():
            (found,) = read(phoenix, tenant, "routing", 1)
            assert found.span_id == decision.span_id
            assert found.trace_id == decision.trace_id
            assert found.attributes["routing.query"] == f"{QUERY} {tenant}"
            assert found.attributes["routing.chosen_agent"] == decision.values["agent"]
            assert found.attributes["routing.confidence"] == decision.confidence

    @pytest.mark.parametrize("module", ["modality", "routing", "workflow"])
    def test_what_was_decided_is_read_back_as_an_example(
        self, module: str, serve: Callable[..., Serving], phoenix: Phoenix, provider: TracerProvider, tenant: str
    ) -> None:
        serving = serve()
        decision = serving.decide(tenant, module, agents=AGENTS, query=QUERY)
        provider.force_flush()
        read(phoenix, tenant, module, 1)
        serving.feedback(decision, correct=True, wait=True)
        (example,) = examples(module, read(phoenix, tenant, module, 1)).examples
        assert example.query == QUERY
        assert example.right == {name: decision.values[name] for name in get_module(module).outputs}
        assert example.provenance is Provenance.HUMAN

    def test_a_fusion_is_read_back_as_an_example(
        self, serve: Callable[..., Serving], phoenix: Phoenix, provider: TracerProvider, tenant: str
    ) -> None:
        serving = serve()
        detected = [{"modality": "image", "confidence": 0.5}, {"modality": "video", "confidence": 0.9}]
        decision = serving.decide(tenant, "cross_modal", query=QUERY, modalities=detected)
        provider.force_flush()
        read(phoenix, tenant, "cross_modal", 1)
        serving.feedback(decision, score=0.4, wait=True)
        (example,) = examples("cross_modal", read(phoenix, tenant, "cross_modal", 1)).examples
        assert example.inputs["modalities"] == "video 0.90, image 0.50"
        assert example.right["fuse"] == "fuse"

    def test_a_composed_decision_is_read_back_from_the_spans_of_its_parts(
        self, serve: Callable[..., Serving], phoenix: Phoenix, provider: TracerProvider, tenant: str, tmp_path: Path
    ) -> None:
        artifacts = VersionStore(ObjectStore(str(tmp_path)), tenant, "routing")
        version = store(artifacts, made_program(tenant, demos=["one"]), active=True)
        serving = serve()
        decision = serving.decide(tenant, "unified", agents=AGENTS, query=QUERY)
        provider.force_flush()
        parts = {part.name: read(phoenix, tenant, part.name, 1) for part in get_module("unified").parts}
        serving.feedback(decision, correct=True, wait=True)
        right = "search_agent" if decision.values["agent"] == "report_agent" else "report_agent"
        serving.feedback(decision.part("routing"), correction=right, wait=True)
        parts = {name: read(phoenix, tenant, name, 1) for name in parts}
        joined = join_parts(read(phoenix, tenant, "unified", 1), parts)
        (example,) = examples("unified", joined).examples
        assert example.right == {**decision.values, "agent": right}
        assert decision.version is None
        assert decision.spans["routing"] != decision.spans["workflow"]
        span = span_in(phoenix, project_name(tenant), decision.spans["routing"])
        assert span["attributes"][PROGRAM_VERSION] == version
        with pytest.raises(InvalidRequest, match=r"decision\.part"):
            serving.feedback(decision, correction="x")
        with pytest.raises(InvalidRequest, match="no part"):
            decision.part("cross_modal")

    def test_a_span_tells_version_arm_request_and_tenant(
        self, serve: Callable[..., Serving], tenant: str, tmp_path: Path
    ) -> None:
        provider, memory = memory_provider()
        serving = serve(tracer_provider=provider)
        serving.decide(tenant, "routing", agents=AGENTS, query=QUERY, request_id="r1")
        artifacts = VersionStore(ObjectStore(str(tmp_path)), tenant, "routing")
        version = store(artifacts, made_program(tenant), active=True)
        serving.refresh()
        serving.decide(tenant, "routing", agents=AGENTS, query=QUERY)
        before, after = (dict(span.attributes or {}) for span in memory.get_finished_spans())
        assert (before[PROGRAM_VERSION], before[ARM], before[REQUEST_ID]) == ("baseline", "baseline", "r1")
        assert (after[PROGRAM_VERSION], after[ARM], after[TENANT_ID]) == (version, "active", tenant)
        assert REQUEST_ID not in after

    def test_a_decision_that_fails_is_a_failed_span_that_says_what_was_asked_and_may_be_drawn(
        self, serve: Callable[..., Serving], tenant: str
    ) -> None:
        class Refusing(StandInEngine):
            def complete(self, request: Request) -> Response:
                raise ValueError("no")

        provider, memory = memory_provider()
        serving = serve(
            tracer_provider=provider, lm=dspy.LM("x/y", engine=Refusing(), cache=False, num_retries=0), review_share=1.0
        )
        with pytest.raises(Exception, match="no"):
            serving.decide(tenant, "routing", agents=AGENTS, query=QUERY)
        (span,) = memory.get_finished_spans()
        assert span.status.status_code is trace.StatusCode.ERROR
        assert (span.attributes or {})["routing.query"] == QUERY
        assert (span.attributes or {})[REVIEW_SAMPLE] is True
        assert not trace.get_current_span().is_recording()

    def test_the_share_drawn_for_review_is_the_applications(self, serve: Callable[..., Serving], tenant: str) -> None:
        provider, memory = memory_provider()
        for share, least, most in ((0.0, 0, 0), (1.0, 60, 60), (0.5, 10, 50)):
            memory.clear()
            serving = serve(tracer_provider=provider, review_share=share)
            decisions = [serving.decide(tenant, "modality", query=QUERY) for _ in range(60)]
            drawn = [REVIEW_SAMPLE in (span.attributes or {}) for span in memory.get_finished_spans()]
            assert drawn == [decision.sampled for decision in decisions]
            assert least <= sum(drawn) <= most

    def test_what_happens_inside_a_decision_goes_to_the_same_project_and_nothing_else_does(
        self, serve: Callable[..., Serving], phoenix: Phoenix, provider: TracerProvider, tenant: str
    ) -> None:
        tracer = provider.get_tracer("application")

        class Traced(StandInEngine):
            def complete(self, request: Request) -> Response:
                with tracer.start_as_current_span("model call"):
                    return super().complete(request)

        serving = serve(lm=dspy.LM("x/y", engine=Traced(), cache=False))
        with tracer.start_as_current_span("request"):
            serving.decide(tenant, "routing", agents=AGENTS, query=QUERY)
        provider.force_flush()
        read(phoenix, tenant, "routing", 1)
        names = {span["name"] for span in wait_for_spans(phoenix, project_name(tenant), 2)}
        assert names == {"cogniverse.routing", "model call"}

    @pytest.mark.parametrize("own_traces", [True, False])
    def test_beside_an_application_that_uses_the_same_phoenix_decisions_need_traces_of_their_own(
        self, own_traces: bool, serve: Callable[..., Serving], phoenix: Phoenix, provider: TracerProvider, tenant: str
    ) -> None:
        """In Phoenix a trace belongs to the project that its first span came to."""
        name = f"application-{tenant}"
        application = TracerProvider(resource=Resource({"openinference.project.name": name}))
        application.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{phoenix.endpoint}/v1/traces")))
        tracer = application.get_tracer("application")
        serving = serve(own_traces=own_traces)
        with tracer.start_as_current_span("request") as request:
            with tracer.start_as_current_span("first"):
                pass
            wait_for_spans(phoenix, name, 1)
            decision = serving.decide(tenant, "routing", agents=AGENTS, query=QUERY)
        provider.force_flush()
        application.shutdown()
        home = project_name(tenant) if own_traces else name
        found = wait_for_spans(phoenix, home, 1 if own_traces else 3)
        assert decision.span_id in {span["context"]["span_id"] for span in found}
        assert (decision.trace_id == f"{request.get_span_context().trace_id:032x}") is not own_traces

    def test_a_trace_of_its_own_links_to_the_requests_span(self, serve: Callable[..., Serving], tenant: str) -> None:
        provider, memory = memory_provider()
        serving = serve(tracer_provider=provider, own_traces=True)
        with TracerProvider().get_tracer("application").start_as_current_span("request") as request:
            serving.decide(tenant, "routing", agents=AGENTS, query=QUERY)
        (span,) = memory.get_finished_spans()
        assert span.parent is None
        assert [link.context for link in span.links] == [request.get_span_context()]

    def test_the_decisions_and_the_feedback_of_forked_workers_arrive(
        self, phoenix: Phoenix, tenant: str, tmp_path: Path
    ) -> None:
        code = f"""
import os, sys
import dspy, opentelemetry.trace
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.serving import Serving, trace_to_phoenix
trace_to_phoenix()
serving = Serving({str(tmp_path)!r}, lm=dspy.LM("stand-in/x", engine=StandInEngine(), cache=False))
def answer(who):
    decision = serving.decide({tenant!r}, "routing", agents={AGENTS!r}, query="asked in " + who)
    serving.feedback(decision, correct=True)
answer("the parent")
assert opentelemetry.trace.get_tracer_provider().force_flush()  # so that there is a connection to inherit
children = []
for number in range(2):
    child = os.fork()
    if child == 0:
        answer(f"worker {{number}}")
        sys.exit(not serving.flush(100))
    children.append(child)
assert serving.flush(100)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""
        env = {**os.environ, "PYTHONPATH": str(PROJECT), "AUTOOPT_PHOENIX_ENDPOINT": phoenix.endpoint}
        subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=240)
        found = read(phoenix, tenant, "routing", 3)
        assert len(found) == 3
        assert all(len(decision.annotations) == 1 for decision in found)

    def test_the_applications_own_provider_is_added_to(self) -> None:
        code = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from autoopt_pipeline.serving import trace_to_phoenix
own = TracerProvider()
trace.set_tracer_provider(own)
assert trace_to_phoenix("http://127.0.0.1:9") is own
assert trace.get_tracer_provider() is own
"""
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})

    def test_without_tracing_decisions_are_made_and_feedback_says_why_it_cannot_be_given(
        self, serve: Callable[..., Serving], tenant: str
    ) -> None:
        serving = serve(tracer_provider=TracerProvider(sampler=ALWAYS_OFF), review_share=1.0)
        decision = serving.decide(tenant, "routing", agents=AGENTS, query=QUERY)
        assert (decision.span_id, decision.sampled) == (None, False)
        with pytest.raises(InvalidRequest, match="not recorded"):
            serving.feedback(decision, correct=True)

    def test_tracing_that_fails_does_not_reach_the_request(
        self, serve: Callable[..., Serving], tenant: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(SpanProcessor):
            def on_start(self, span: object, parent_context: object = None) -> None:
                raise RuntimeError("broken processor")

            def on_end(self, span: object) -> None:
                raise RuntimeError("broken processor")

        provider = TracerProvider()
        provider.add_span_processor(Broken())
        serving = serve(tracer_provider=provider)
        for _ in range(3):
            assert serving.decide(tenant, "routing", agents=AGENTS, query=QUERY).values["agent"] in AGENTS
        assert sum("tracing of decisions fails" in record.getMessage() for record in caplog.records) == 1

    def test_a_phoenix_that_is_down_holds_up_nothing(self, serve: Callable[..., Serving], tenant: str) -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        trace_to_phoenix("http://127.0.0.1:9", tracer_provider=provider)
        serving = serve(tracer_provider=provider, phoenix_endpoint="http://127.0.0.1:9")
        serving.decide(tenant, "routing", agents=AGENTS, query=QUERY)
        began = time.monotonic()
        for _ in range(20):
            decision = serving.decide(tenant, "routing", agents=AGENTS, query=QUERY)
            serving.feedback(decision, correct=True)
        assert time.monotonic() - began < 2
        deadline = time.monotonic() + 10
        while not serving.problems():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "takes no feedback: ConnectError" in serving.problems()[0].what
        with pytest.raises(PhoenixUnavailable):
            serving.feedback(decision, correct=True, wait=True)


class TestFeedback:
    def test_it_may_be_given_before_the_span_has_arrived(
        self, serve: Callable[..., Serving], phoenix: Phoenix, provider: TracerProvider, tenant: str
    ) -> None:
        serving = serve()
        late = serving.decide(tenant, "routing", agents=AGENTS, query=QUERY)
        with pytest.raises(PhoenixUnavailable, match="does not have the span yet"):
            serving.feedback(late, correct=True, wait=True)
        serving.feedback(late, correction="search_agent")
        time.sleep(0.5)
        provider.force_flush()
        assert serving.flush(60)
        assert serving.problems() == []
        (example,) = examples("routing", read(phoenix, tenant, "routing", 1)).examples
        assert example.right == {"agent": "search_agent"}

    def test_one_span_that_never_comes_holds_up_no_others(
        self,
        serve: Callable[..., Serving],
        phoenix: Phoenix,
        provider: TracerProvider,
        tenant: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        serving = serve()
        decisions = [serving.decide(tenant, "routing", agents=AGENTS, query=f"{QUERY} {i}") for i in range(9)]
        provider.force_flush()
        read(phoenix, tenant, "routing", 9)
        lost = Decision(tenant, "routing", {}, None, None, "baseline", False, None, {"routing": "f" * 16})
        for decision in [*decisions[:4], lost, *decisions[4:]]:
            serving.feedback(decision, correct=True)
        assert not serving.flush(3)
        assert all(len(d.annotations) == 1 for d in read(phoenix, tenant, "routing", 9))
        monkeypatch.setattr(sending, "GIVE_UP_SECONDS", 0)
        assert serving.flush(20)
        assert "has no span of it" in serving.problems()[0].what

    def test_a_later_word_replaces_the_earlier_one_and_a_judge_never_replaces_a_person(
        self, serve: Callable[..., Serving], phoenix: Phoenix, provider: TracerProvider, tenant: str
    ) -> None:
        serving = serve()
        decision = serving.decide(tenant, "routing", agents=AGENTS, query=QUERY)
        provider.force_flush()
        read(phoenix, tenant, "routing", 1)
        serving.feedback(decision, correct=False, wait=True)
        serving.feedback(decision, correct=True)
        serving.feedback(decision, correct=False, kind="LLM")
        serving.feedback(decision, correct=False, kind="LLM", by="another judge")
        assert serving.flush(20)
        (found,) = read(phoenix, tenant, "routing", 1)
        labels = sorted((annotation.kind, annotation.label) for annotation in found.annotations)
        assert labels == [("HUMAN", "correct"), ("LLM", "wrong"), ("LLM", "wrong")]

    def test_only_a_review_of_a_drawn_decision_is_independent(
        self, serve: Callable[..., Serving], phoenix: Phoenix, provider: TracerProvider, tenant: str
    ) -> None:
        drawing, others = serve(review_share=1.0), serve()
        reviewed = drawing.decide(tenant, "routing", agents=AGENTS, query="one two three")
        complaint = drawing.decide(tenant, "routing", agents=AGENTS, query="four five six")
        not_drawn = others.decide(tenant, "routing", agents=AGENTS, query="seven eight nine")
        provider.force_flush()
        read(phoenix, tenant, "routing", 3)
        drawing.feedback(reviewed, correct=True, sampled=True, wait=True)
        drawing.feedback(complaint, correct=True, wait=True)
        others.feedback(not_drawn, correct=True, sampled=True, wait=True)
        found = {e.query: e.independent for e in examples("routing", read(phoenix, tenant, "routing", 3)).examples}
        assert found == {"one two three": True, "four five six": False, "seven eight nine": False}

    def test_feedback_that_says_nothing_is_refused(self, serve: Callable[..., Serving], tenant: str) -> None:
        decision = Decision(tenant, "routing", {}, None, None, "baseline", False, None, {"routing": "f" * 16})
        with pytest.raises(InvalidRequest, match="says nothing"):
            serve().feedback(decision)
        with pytest.raises(InvalidRequest, match="not clear"):
            serve().feedback(decision, correct=True, correction="a")

    def test_an_address_that_is_not_phoenix_is_told(self, serve: Callable[..., Serving], phoenix: Phoenix) -> None:
        decision = Decision("acme", "routing", {}, None, None, "baseline", False, None, {"routing": "f" * 16})
        with pytest.raises(PhoenixRefused, match="Phoenix's own address"):
            serve(phoenix_endpoint=f"{phoenix.endpoint}/projects").feedback(decision, correct=True, wait=True)

    def test_what_is_too_much_is_dropped_and_told(
        self, serve: Callable[..., Serving], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(sending, "CAPACITY", 5)
        serving = serve(phoenix_endpoint="http://127.0.0.1:9")
        for number in range(9):
            spans = {"routing": f"{number:016x}"}
            decision = Decision("acme", "routing", {}, None, None, "baseline", False, None, spans)
            serving.feedback(decision, correct=True)
        assert any("one is dropped" in record.getMessage() for record in caplog.records)
        assert len(serving._feedback._waiting) == 5

    def test_what_waits_is_sent_before_the_process_ends(
        self, serve: Callable[..., Serving], phoenix: Phoenix, provider: TracerProvider, tenant: str
    ) -> None:
        decision = serve().decide(tenant, "routing", agents=AGENTS, query=QUERY)
        provider.force_flush()
        read(phoenix, tenant, "routing", 1)
        code = f"""
from autoopt_pipeline.serving import Decision, Serving
decision = Decision(**{decision.__dict__!r})
Serving("/tmp", phoenix_endpoint={phoenix.endpoint!r}).feedback(decision, correct=True)
"""
        env = {**os.environ, "PYTHONPATH": str(PROJECT)}
        subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=60)
        (found,) = read(phoenix, tenant, "routing", 1)
        assert [annotation.label for annotation in found.annotations] == ["correct"]


def wait_for_spans(phoenix: Phoenix, project: str, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 60
    while True:
        response = httpx.get(f"{phoenix.endpoint}/v1/projects/{project}/spans", params={"limit": 100})
        found = response.json()["data"] if response.is_success else []
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, f"{len(found)} of {count} spans arrived"
        time.sleep(0.2)


def span_in(phoenix: Phoenix, project: str, span_id: str) -> dict[str, Any]:
    (found,) = [s for s in wait_for_spans(phoenix, project, 1) if s["context"]["span_id"] == span_id]
    return found
