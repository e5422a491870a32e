"""What we rely on Phoenix for, against a real server."""

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import set_span_in_context

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import (
    SAMPLE_AGENTS,
    TrafficProfile,
    sample_truths_for,
    simulate_requests,
)
from autoopt_pipeline.errors import PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label, Provenance
from autoopt_pipeline.scheduling.annotation_counts import AnnotationsSeen
from autoopt_pipeline.scheduling.conditions import RunOutcome
from autoopt_pipeline.span_contract import ROUTING, ROUTING_SPAN, NewAnnotation, project_name
from autoopt_pipeline.traces.client import CountRequest, Phoenix, Project
from autoopt_pipeline.traces.counts import Wanted, gather_evidence
from autoopt_pipeline.traces.reader import bounded_window, collect, read_decisions
from tests.support.phoenix_traffic import AGENTS, ALL_REVIEWED, NOW, requests, trace_count
from tests.support.sample_decisions import as_read

ON_POSTGRES_TOO = True
SPEC = get_module("routing")


def project_of(phoenix: Phoenix, tenant: str) -> Project:
    project = phoenix.project(project_name(tenant))
    assert project is not None
    return project


def wanted(tenant: str, since: datetime, outcome: RunOutcome | None = None) -> Wanted:
    return Wanted(tenant, SPEC, since, outcome)


@pytest.mark.parametrize("openinference", [False, True], ids=["flat keys", "OpenInference JSON"])
def test_what_is_played_is_read_back(phoenix: Phoenix, tenant: str, openinference: bool) -> None:
    habits = replace(ALL_REVIEWED, openinference=openinference)
    played = requests(40, habits)
    send_traffic(phoenix, tenant, played)
    read = phoenix.decisions(project_of(phoenix, tenant), ROUTING, start=NOW - timedelta(hours=2), end=NOW)
    assert [decision.time for decision in read] == [request.time for request in played]
    assert [decision.failed for decision in read] == [request.spans[0].failed for request in played]
    found = SPEC.build_examples([Label(name) for name in AGENTS], read)
    assert found.unusable == {}
    assert [example.query for example in found.examples] == [f"question number {i}" for i in range(40)]
    assert {example.provenance for example in found.examples} == {Provenance.HUMAN}
    assert all(example.independent for example in found.examples)
    right = [example.label == AGENTS[i % 2] for i, example in enumerate(found.examples)]
    assert sum(right) >= 37  # reviewers err a little


def test_the_spans_of_one_trace_are_read_together_for_a_composed_module(phoenix: Phoenix, tenant: str) -> None:
    rng = random.Random(1)
    habits = replace(ALL_REVIEWED, plans=True, fuses=True)
    choices = {"agent": list(SAMPLE_AGENTS), "modality": ["video", "text"]}
    start = NOW - timedelta(hours=1)
    played = list(
        simulate_requests(list(sample_truths_for(habits, 20, rng)), choices, habits, start=start, end=NOW, rng=rng)
    )
    send_traffic(phoenix, tenant, played)
    window = {"start": NOW - timedelta(hours=2), "end": NOW}
    agents = [Label(name) for name in SAMPLE_AGENTS]
    for name in ("cross_modal", "workflow", "unified"):
        spec = get_module(name)
        seen = collect(phoenix, tenant, spec, **window)
        expected = [example.right for example in spec.build_examples(agents, as_read(spec, played)).examples]
        found = spec.build_examples(spec.labels or agents, seen.decisions)
        assert [example.right for example in found.examples] == expected
        assert len(expected) == 20
        assert all(example.independent for example in found.examples)
        assert seen.annotations
        assert seen.annotations.total == (60 if name == "unified" else 20)
        evidence = gather_evidence(phoenix, [Wanted(tenant, spec, NOW - timedelta(hours=2), None)], until=NOW)
        assert evidence[tenant, name].new_traces == 20


def test_an_org_tenants_project_is_found(phoenix: Phoenix, tenant: str) -> None:
    send_traffic(phoenix, f"{tenant}:eu", requests(3))
    assert len(collect(phoenix, f"{tenant}:eu", SPEC, start=NOW - timedelta(hours=2), end=NOW).decisions) == 3


def test_only_spans_of_the_contract_count_and_not_the_spans_inside_a_trace(phoenix: Phoenix, tenant: str) -> None:
    provider = TracerProvider(resource=Resource.create({"openinference.project.name": project_name(tenant)}))
    exporter = OTLPSpanExporter(endpoint=f"{phoenix.endpoint}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("application")
    for i in range(5):
        with (
            tracer.start_as_current_span("request"),
            tracer.start_as_current_span(ROUTING_SPAN, attributes={"routing.query": f"q{i}"}),
            tracer.start_as_current_span("ChatAdapter.__call__"),
            tracer.start_as_current_span("LM.__call__"),
        ):
            pass
    with tracer.start_as_current_span("something else"):
        pass
    provider.shutdown()
    later = datetime.now(UTC) + timedelta(minutes=1)
    _wait_for_traces(phoenix, tenant, 6)
    evidence = gather_evidence(phoenix, [wanted(tenant, NOW - timedelta(hours=1))], until=later)
    assert evidence[tenant, "routing"].new_traces == 5
    read = phoenix.decisions(project_of(phoenix, tenant), ROUTING, start=NOW - timedelta(hours=1), end=later)
    assert len(read) == 5
    assert not any(decision.failed for decision in read)  # their status is UNSET


def test_windows_include_their_start_and_not_their_end(phoenix: Phoenix, tenant: str) -> None:
    played = requests(10)
    send_traffic(phoenix, tenant, played)
    project = project_of(phoenix, tenant)
    start, end = played[2].time, played[7].time
    request = CountRequest(project.id, ROUTING_SPAN, start, end)
    assert phoenix.count([request])[request] == 5
    read = phoenix.decisions(project_of(phoenix, tenant), ROUTING, start=start, end=end)
    assert [decision.time for decision in read] == [request.time for request in played[2:7]]


def test_no_limit_drops_spans_silently(phoenix: Phoenix, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    played = requests(130)
    same_instant = [replace(request, time=played[40].time) for request in played[40:75]]
    send_traffic(phoenix, tenant, [*played[:40], *same_instant, *played[75:]])
    monkeypatch.setattr("autoopt_pipeline.traces.client.SPANS_PER_READ", 20)
    read = phoenix.decisions(project_of(phoenix, tenant), ROUTING, start=NOW - timedelta(hours=2), end=NOW)
    assert len({decision.span_id for decision in read}) == len(read) == 130
    assert sum(decision.time == played[40].time for decision in read) == 35


def test_attributes_are_read_page_by_page_within_their_time(
    phoenix: Phoenix, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoopt_pipeline.traces.client.PAGE", 2)
    send_traffic(phoenix, tenant, requests(7))
    project, start = project_name(tenant), NOW - timedelta(hours=2)
    decisions = phoenix.decisions(project_of(phoenix, tenant), ROUTING, start=start, end=NOW)
    read = phoenix.attributes_of(project, ROUTING_SPAN, start=start, end=NOW)
    assert {span_id: found["routing"]["query"] for span_id, found in read.items()} == {
        decision.span_id: decision.attributes["routing.query"] for decision in decisions
    }
    until = decisions[4].time
    early = phoenix.attributes_of(project, ROUTING_SPAN, start=start, end=until)
    assert early.keys() == {decision.span_id for decision in decisions[:4]}
    assert phoenix.attributes_of(f"{project}-none", ROUTING_SPAN, start=start, end=NOW) == {}


def test_long_conversations_are_read_whole(phoenix: Phoenix, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of one trace lie far apart in time, so the order of traces is not the order of decisions."""
    exporter = OTLPSpanExporter(endpoint=f"{phoenix.endpoint}/v1/traces")
    provider = TracerProvider(resource=Resource.create({"openinference.project.name": project_name(tenant)}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("application")
    begin = int((NOW - timedelta(hours=1)).timestamp()) * 10**9
    for conversation in range(10):
        root = tracer.start_span("conversation", start_time=begin + conversation * 10**9)
        context = set_span_in_context(root)
        for turn in range(20):
            at = begin + (conversation + 60 * turn) * 10**9
            tracer.start_span(ROUTING_SPAN, context, attributes={"routing.query": "q"}, start_time=at).end(at + 1)
        root.end(begin + 3000 * 10**9)
    provider.shutdown()
    _wait_for_traces(phoenix, tenant, 10)
    request = CountRequest(project_of(phoenix, tenant).id, ROUTING_SPAN, NOW - timedelta(hours=2), NOW)
    _wait_for(lambda i: phoenix.count([replace(request, end=NOW + timedelta(microseconds=i))]), 200)
    monkeypatch.setattr("autoopt_pipeline.traces.client.SPANS_PER_READ", 30)
    read = phoenix.decisions(project_of(phoenix, tenant), ROUTING, start=NOW - timedelta(hours=2), end=NOW)
    assert len({decision.span_id for decision in read}) == len(read) == 200
    assert [decision.time for decision in read] == sorted(decision.time for decision in read)


def test_a_review_made_on_phoenix_pages_is_known_as_one(phoenix: Phoenix, tenant: str) -> None:
    send_traffic(phoenix, tenant, requests(2, TrafficProfile(reviewed=0, complains=0, malformed=0)))
    by_api, by_hand = phoenix.decisions(project_of(phoenix, tenant), ROUTING, start=NOW - timedelta(hours=2), end=NOW)
    phoenix.annotate([NewAnnotation(by_api.span_id, ROUTING.annotation, "HUMAN", "correct", {})])
    query = f"""query {{ getProjectByName(name: "{project_name(tenant)}") {{
        spans(first: 10) {{ edges {{ node {{ id spanId }} }} }} }} }}"""
    answer = httpx.post(f"{phoenix.endpoint}/graphql", json={"query": query}).json()["data"]["getProjectByName"]
    ids = {edge["node"]["spanId"]: edge["node"]["id"] for edge in answer["spans"]["edges"]}
    mutation = """mutation ($input: [CreateSpanAnnotationInput!]!) {
        createSpanAnnotations(input: $input) { spanAnnotations { id } } }"""
    made = {
        "spanId": ids[by_hand.span_id],
        "name": ROUTING.annotation,
        "annotatorKind": "HUMAN",
        "label": "correct",
        "metadata": {},
        "source": "APP",
    }
    done = httpx.post(f"{phoenix.endpoint}/graphql", json={"query": mutation, "variables": {"input": [made]}}).json()
    assert "errors" not in done, done
    read = phoenix.decisions(project_of(phoenix, tenant), ROUTING, start=NOW - timedelta(hours=2), end=NOW)
    assert [decision.annotations[0].made_in_ui for decision in read] == [False, True]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of requests to Phoenix from now on, but for those that ask whether a silent one is back: they may be of
    another test's."""
    paths: list[str] = []
    original = httpx.Client.request

    def noting(self: httpx.Client, method: str, url: str, **kwargs: Any) -> httpx.Response:
        if url != "/readyz":
            paths.append(str(url))
        return original(self, method, url, **kwargs)

    monkeypatch.setattr(httpx.Client, "request", noting)
    return paths


def test_annotations_are_read_only_where_there_are_some(phoenix: Phoenix, tenant: str, asked: list[str]) -> None:
    send_traffic(phoenix, tenant, requests(2, TrafficProfile(reviewed=0, complains=0, malformed=0)))
    first, second = phoenix.decisions(project_of(phoenix, tenant), ROUTING, start=NOW - timedelta(hours=2), end=NOW)
    assert not [path for path in asked if path.endswith("/span_annotations")]
    phoenix.annotate([NewAnnotation(first.span_id, ROUTING.annotation, "HUMAN", "correct", {})])
    read = phoenix.decisions(project_of(phoenix, tenant), ROUTING, start=NOW - timedelta(hours=2), end=NOW)
    assert [path for path in asked if path.endswith("/span_annotations")]
    assert {decision.span_id: len(decision.annotations) for decision in read} == {first.span_id: 1, second.span_id: 0}


def test_parts_of_a_long_read_are_not_counted_first(
    phoenix: Phoenix, tenant: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    send_traffic(phoenix, tenant, requests(60))
    project = project_of(phoenix, tenant)
    asked.clear()
    monkeypatch.setattr("autoopt_pipeline.traces.client.SPANS_PER_READ", 50)
    assert len(phoenix.decisions(project, ROUTING, start=NOW - timedelta(days=30), end=NOW)) == 60
    assert sum("graphql" in path for path in asked) == 1
    assert sum("spans" in path for path in asked) == 3


def test_nothing_is_read_where_nothing_is_counted(phoenix: Phoenix, tenant: str, asked: list[str]) -> None:
    send_traffic(phoenix, tenant, requests(3))
    project = project_of(phoenix, tenant)
    asked.clear()
    assert phoenix.decisions(project, ROUTING, start=NOW - timedelta(days=60), end=NOW - timedelta(days=30)) == []
    assert len(asked) == 1


@pytest.mark.parametrize("newest", [True, False])
def test_a_bounded_window_keeps_one_end_and_few_decisions(phoenix: Phoenix, tenant: str, newest: bool) -> None:
    played = requests(60)
    send_traffic(phoenix, tenant, played)
    project, spec, start = project_of(phoenix, tenant), get_module("routing"), played[0].time
    assert bounded_window(phoenix, project, spec, start, NOW, most=60, newest=newest) == (start, NOW)
    window = bounded_window(phoenix, project, spec, start, NOW, most=20, newest=newest)
    kept = read_decisions(phoenix, project, spec, start=window[0], end=window[1])
    everything = read_decisions(phoenix, project, spec, start=start, end=NOW)
    assert 0 < len(kept) <= 20
    assert kept == (everything[-len(kept) :] if newest else everything[: len(kept)])
    assert (window[1] == NOW) if newest else (window[0] == start)


def test_many_counts_need_few_requests(phoenix: Phoenix, tenant: str, asked: list[str]) -> None:
    played = requests(20)
    send_traffic(phoenix, tenant, played)
    project = project_of(phoenix, tenant)
    windows = [CountRequest(project.id, ROUTING_SPAN, request.time, NOW) for request in played]
    many = [replace(window, end=NOW + timedelta(seconds=i)) for window in windows for i in range(6)]
    asked.clear()
    counts = phoenix.count([*many, *many])
    assert len(asked) == 3  # 120 different windows, 50 a document
    assert counts[many[0]] == 20
    assert counts[many[-1]] == 1


def test_new_evidence_is_what_came_since_the_last_outcome(phoenix: Phoenix, tenant: str) -> None:
    first = requests(30, TrafficProfile(reviewed=0, complains=0), end=NOW - timedelta(hours=3))
    send_traffic(phoenix, tenant, first)
    end = NOW - timedelta(hours=2)
    seen = collect(phoenix, tenant, SPEC, start=end - timedelta(days=1), end=end)
    outcome = RunOutcome(end, seen.annotations)
    assert (seen.annotations, len(seen.decisions)) == (AnnotationsSeen(0), 30)

    nothing = gather_evidence(phoenix, [wanted(tenant, end, outcome)], until=NOW)[tenant, "routing"]
    assert (nothing.new_traces, nothing.new_annotations) == (0, 0)

    send_traffic(phoenix, tenant, requests(12, TrafficProfile(reviewed=0, complains=0), seed=2))
    late = [NewAnnotation(d.span_id, ROUTING.annotation, "HUMAN", "correct", {}) for d in seen.decisions[:7]]
    phoenix.annotate(late)
    new = gather_evidence(phoenix, [wanted(tenant, end, outcome)], until=NOW)[tenant, "routing"]
    assert (new.new_traces, new.new_annotations) == (12, 7)

    phoenix.annotate(late)  # saying it again is nothing new
    again = gather_evidence(phoenix, [wanted(tenant, end, outcome)], until=NOW + timedelta(seconds=1))
    assert again[tenant, "routing"].new_annotations == 7


def test_what_is_new_is_not_hidden_by_as_much_that_phoenix_deletes(phoenix: Phoenix, tenant: str) -> None:
    """Retention keeps the number of traces, and of annotations, about even."""
    send_traffic(phoenix, tenant, requests(40, ALL_REVIEWED, end=NOW - timedelta(hours=5)))
    send_traffic(phoenix, tenant, requests(30, ALL_REVIEWED, end=NOW - timedelta(hours=3)))
    end = NOW - timedelta(hours=2)
    seen = collect(phoenix, tenant, SPEC, start=end - timedelta(days=1), end=end)
    assert seen.annotations
    assert seen.annotations.total == 70
    outcome = RunOutcome(end, seen.annotations)

    send_traffic(phoenix, tenant, requests(40, seed=2))
    _delete_traces(phoenix, tenant, before=NOW - timedelta(hours=4, minutes=30))
    assert trace_count(phoenix, tenant) == 70
    new = gather_evidence(phoenix, [wanted(tenant, end, outcome)], until=NOW)[tenant, "routing"]
    assert (new.new_traces, new.new_annotations) == (40, 40)


def test_what_is_deleted_with_nothing_new_is_no_evidence(phoenix: Phoenix, tenant: str) -> None:
    send_traffic(phoenix, tenant, requests(60))
    half = NOW - timedelta(minutes=30)
    seen = collect(phoenix, tenant, SPEC, start=half, end=NOW)  # the lookback leaves out what is older
    assert 20 < len(seen.decisions) < 40
    outcome = RunOutcome(NOW, seen.annotations)
    for minutes in (50, 20):  # some of what was not read goes, then all of it and some of what was
        _delete_traces(phoenix, tenant, before=NOW - timedelta(minutes=minutes))
        new = gather_evidence(phoenix, [wanted(tenant, NOW, outcome)], until=NOW)[tenant, "routing"]
        assert new.new_traces == 0
        assert new.new_annotations <= 3  # of those that were not read it is only known how many they were
    _delete_traces(phoenix, tenant, before=NOW + timedelta(hours=1))
    none = gather_evidence(phoenix, [wanted(tenant, NOW, outcome)], until=NOW)[tenant, "routing"]
    assert (none.new_traces, none.new_annotations) == (0, 0)


def test_traces_that_are_not_settled_are_left_for_the_next_time(phoenix: Phoenix, tenant: str) -> None:
    played = requests(20)
    send_traffic(phoenix, tenant, played)
    until = played[12].time
    seen = collect(phoenix, tenant, SPEC, start=NOW - timedelta(days=1), end=until)
    assert len(seen.decisions) == 12
    outcome = RunOutcome(until, seen.annotations)
    later = gather_evidence(phoenix, [wanted(tenant, until, outcome)], until=NOW)[tenant, "routing"]
    assert later.new_traces == 8


def test_a_missing_project_an_empty_one_and_a_wrong_filter_are_three_things(phoenix: Phoenix, tenant: str) -> None:
    send_traffic(phoenix, f"{tenant}-other-spans", requests(4))
    other = replace(SPEC, name="wrong", contract=replace(ROUTING, span_name="cogniverse.nothing"))
    since = NOW - timedelta(hours=2)
    evidence = gather_evidence(
        phoenix,
        [
            wanted(f"{tenant}-missing", since),
            wanted(f"{tenant}-other-spans", NOW - timedelta(seconds=1)),
            Wanted(f"{tenant}-other-spans", other, since, None),
        ],
        until=NOW,
    )
    missing, outside, wrong = evidence.values()
    assert "has no project" in missing.note
    assert (outside.new_traces, wrong.new_traces) == (0, 0)
    assert "no span named 'cogniverse.nothing'" in wrong.note
    with pytest.raises(PhoenixRefused, match="has no project"):
        collect(phoenix, f"{tenant}-missing", SPEC, start=since, end=NOW)


def test_tenants_whose_names_begin_alike_are_kept_apart(phoenix: Phoenix, tenant: str) -> None:
    send_traffic(phoenix, tenant, requests(3))
    send_traffic(phoenix, f"{tenant}2", requests(5))
    since = NOW - timedelta(hours=2)
    evidence = gather_evidence(phoenix, [wanted(tenant, since), wanted(f"{tenant}2", since)], until=NOW)
    assert [e.new_traces for e in evidence.values()] == [3, 5]


def test_a_server_that_is_down_is_an_error_that_names_it() -> None:
    with pytest.raises(PhoenixUnavailable) as error:
        Phoenix("http://127.0.0.1:9").projects(["any"])
    assert "http://127.0.0.1:9" in str(error.value)
    assert "AUTOOPT_PHOENIX_ENDPOINT" in str(error.value)


def test_a_password_in_the_endpoint_is_never_shown() -> None:
    phoenix = Phoenix("http://user:hunter2@127.0.0.1:9")
    assert phoenix.endpoint == "http://127.0.0.1:9"
    with pytest.raises(PhoenixUnavailable) as error:
        phoenix.projects(["any"])
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[", "ftp://x"])
def test_an_endpoint_that_is_none_is_an_error(endpoint: str) -> None:
    with pytest.raises((PhoenixUnavailable, PhoenixRefused)):
        Phoenix(endpoint).projects(["any"])


ANSWERS = {
    "HTML of a proxy": (200, b"<html>welcome</html>", PhoenixRefused),
    "server error": (500, b"oops", PhoenixUnavailable),
    "bad key": (401, b"Invalid token", PhoenixRefused),
    "truncated": (200, b'{"data": {"proj', PhoenixRefused),
    "empty": (200, b"", PhoenixRefused),
    "GraphQL error": (200, b'{"data": null, "errors": [{"message": "boom"}]}', PhoenixRefused),
    "another shape": (200, b'{"data": {}}', PhoenixRefused),
    "a list": (200, b"[]", PhoenixRefused),
}


@pytest.fixture(params=ANSWERS.values(), ids=list(ANSWERS))
def strange_server(request: pytest.FixtureRequest) -> Iterator[tuple[str, type[Exception]]]:
    status, body, error = request.param

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", error
    server.shutdown()
    server.server_close()


def test_a_strange_answer_is_an_error_and_never_zero_traces(strange_server: tuple[str, type[Exception]]) -> None:
    endpoint, expected = strange_server
    with pytest.raises(expected) as error:
        Phoenix(endpoint, api_key="px-secret").projects(["any"])
    assert endpoint in str(error.value)
    assert "px-secret" not in str(error.value)
    assert "\n" not in str(error.value)


def _delete_traces(phoenix: Phoenix, tenant: str, *, before: datetime) -> None:
    """As Phoenix's retention does it. On SQLite it keeps the times of a project for a moment."""
    oldest = project_of(phoenix, tenant).oldest
    window = {"start_time": (before - timedelta(days=1)).isoformat(), "end_time": before.isoformat()}
    path = f"{phoenix.endpoint}/v1/projects/{project_name(tenant)}/traces"
    httpx.delete(path, params=window, timeout=60).raise_for_status()
    _wait_for(lambda _: {"changed": project_of(phoenix, tenant).oldest != oldest}, 1)


def _wait_for_traces(phoenix: Phoenix, tenant: str, count: int) -> None:
    _wait_for(lambda _: {"traces": trace_count(phoenix, tenant)}, count)


def _wait_for(counting: Callable[[int], Mapping[Any, int]], count: int) -> None:
    """Wait until as much is stored. Each try asks for another window, for Phoenix keeps counts on SQLite."""
    for i in range(200):
        if sum(counting(i).values()) >= count:
            return
        threading.Event().wait(0.1)
    raise AssertionError("the spans were not stored")
