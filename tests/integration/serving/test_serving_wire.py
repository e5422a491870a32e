"""What serving puts on the wire, and what it says when that does not arrive as it is."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request, Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import SpanLimits, TracerProvider

from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.serving import Serving, trace_to_phoenix
from tests.support.project import PROJECT
from tests.support.stored_programs import artifacts, made_program, store

AGENTS = ["search_agent", "report_agent"]


class Collector(BaseHTTPRequestHandler):
    """Keeps the spans that it is sent, and answers with a status."""

    status: int
    spans: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.status == 200:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def collector() -> Iterator[tuple[str, type[Collector]]]:
    handler = type("Own", (Collector,), {"status": 200, "spans": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def texts(message: Any) -> list[str]:
    """All text in a span: its attributes, its events, its status."""
    own = [attribute.value.string_value for attribute in message.attributes]
    events = [attribute.value.string_value for event in message.events for attribute in event.attributes]
    return [*own, *events, message.status.message]


def attribute(message: Any, name: str) -> str:
    (found,) = [each.value.string_value for each in message.attributes if each.key == name]
    return found


def lm(engine: Any = None) -> dspy.LM:
    return dspy.LM("stand-in/nearest-demo", engine=engine or StandInEngine(), cache=False, num_retries=0)


def test_every_text_of_a_span_arrives_as_it_can_be_stored_everywhere(
    collector: tuple[str, type[Collector]], tmp_path: Path
) -> None:
    class Quoting(StandInEngine):
        def complete(self, request: Request) -> Response:
            raise ValueError("cannot answer a\0b \ud83d")

    endpoint, sent = collector
    provider = TracerProvider()
    trace_to_phoenix(endpoint, tracer_provider=provider)
    odd = {"query": "find a\0b \ud83d", "entities": [{"name\0": "x\0y"}, "\ud83d"]}
    for engine in (StandInEngine(), Quoting()):
        serving = Serving(str(tmp_path), lm=lm(engine), tracer_provider=provider)
        try:
            serving.decide("acme", "routing", agents=AGENTS, request_id="r\0\ud83d", **odd)
        except Exception as e:  # noqa: BLE001 - of whatever kind DSPy makes of it
            assert isinstance(engine, Quoting), e
    provider.shutdown()
    answered, failed, counts = sent.spans
    assert json.loads(attribute(counts, "autoopt.decision_counts")) == {"acme": {"cogniverse.routing": 2}}
    for span in (answered, failed):
        assert attribute(span, "routing.query") == "find a\ufffdb \ufffd"
        assert attribute(span, "autoopt.request_id") == "r\ufffd\ufffd"
        asked = json.loads(attribute(span, "input.value"))
        assert asked == {"query": "find a\ufffdb \ufffd", "entities": [{"name\ufffd": "x\ufffdy"}, "\ufffd"]}
        assert all("\0" not in text for text in texts(span))
    assert "cannot answer a\ufffdb \ufffd" in failed.status.message
    assert any("cannot answer a\ufffdb \ufffd" in text for text in texts(failed)[:-1])


@pytest.mark.parametrize("way", ["of the provider", "of the environment"])
def test_a_limit_on_attributes_is_told_once(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider(span_limits=SpanLimits(max_span_attribute_length=20))
    if way == "of the environment":
        provider = TracerProvider()
        monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "20")
    (tmp_path / "another-tenant").mkdir()
    serving = Serving(str(tmp_path), lm=lm(), tracer_provider=provider)
    assert [problem.where for problem in serving.problems()] == (["tracing"] if way == "of the environment" else [])
    for _ in range(3):
        serving.decide("acme", "routing", agents=AGENTS, query="where is the report of last year?")
    (problem,) = serving.problems()
    assert "after 20 characters" in problem.what
    assert "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT" in problem.remedy
    assert sum("after 20 characters" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("status", "what", "remedy"),
    [
        (403, "its key may not do this (403", "AUTOOPT_PHOENIX_API_KEY"),
        (404, "HTTP 404", "Phoenix's own address"),
        (None, "ConnectionError", "AUTOOPT_PHOENIX_ENDPOINT"),
    ],
)
def test_spans_that_are_not_taken_are_a_problem_until_some_are(
    status: int | None,
    what: str,
    remedy: str,
    collector: tuple[str, type[Collector]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint, sent = collector
    (tmp_path / "another-tenant").mkdir()
    provider = TracerProvider()
    trace_to_phoenix(endpoint if status else "http://user:hunter2@127.0.0.1:9", tracer_provider=provider)
    serving = Serving(str(tmp_path), lm=lm(), tracer_provider=provider)
    sent.status = status or 200
    for _ in range(2):
        serving.decide("acme", "routing", agents=AGENTS, query="x")
        provider.force_flush()
        (problem,) = serving.problems()
        assert (problem.where, what in problem.what, remedy in problem.remedy) == ("spans", True, True)
        assert "hunter2" not in problem.what
    assert sum(record.name.startswith("autoopt_pipeline") for record in caplog.records) == 1
    if status:
        sent.status = 200
        serving.decide("acme", "routing", agents=AGENTS, query="x")
        provider.force_flush()
        assert serving.problems() == []
        assert len(sent.spans) == 1
    provider.shutdown()


def test_a_root_that_holds_nothing_is_told_once_until_it_holds_something(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "not-there"
    serving = Serving(str(root), lm=lm(), refresh_seconds=3600)
    for tenant in ("acme", "globex", "acme"):
        assert serving.decide(tenant, "routing", agents=AGENTS, query="x").version is None
    serving.refresh()
    (problem,) = serving.problems()
    assert problem.where == "artifacts"
    assert str(root) in problem.what
    assert "AUTOOPT_ARTIFACTS_URL" in problem.remedy
    assert sum("holds nothing" in record.getMessage() for record in caplog.records) == 1
    assert not root.exists()
    store(artifacts(root, "hooli"), made_program("hooli"))  # somebody's program, which nobody asks for here
    serving.refresh()
    assert serving.problems() == []


def test_serving_without_any_setting_says_that_it_has_no_store(tmp_path: Path) -> None:
    code = f"""
import dspy, json
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.serving import Serving
serving = Serving(lm=dspy.LM("stand-in/x", engine=StandInEngine(), cache=False))
serving.decide("acme", "routing", agents={AGENTS!r}, query="x")
print(json.dumps([problem.what for problem in serving.problems()]))
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOOPT_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [
        f"artifact root {tmp_path}/.autoopt/artifacts holds nothing, so only baselines serve"
    ]
    assert "holds nothing" in done.stderr
