"""Feedback that is wrong costs nobody else's, is told, and is not quoted."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider

from autoopt_pipeline.errors import InvalidRequest
from autoopt_pipeline.serving import Decision, Serving, trace_to_phoenix
from autoopt_pipeline.serving import _feedback as sending
from autoopt_pipeline.span_contract import ROUTING_SPAN, project_name
from autoopt_pipeline.traces.client import Phoenix

SECRET = "who-says-so-9431"


def decision(tenant: str, span_id: Any) -> Decision:
    return Decision(tenant, "routing", {}, None, None, "baseline", False, None, {"routing": span_id})


@pytest.fixture
def stored(phoenix: Phoenix) -> Callable[[str, int], list[Decision]]:
    """Decisions of a tenant whose spans Phoenix has."""

    def make(tenant: str, count: int) -> list[Decision]:
        provider = TracerProvider()
        trace_to_phoenix(phoenix.endpoint, tracer_provider=provider)
        made = []
        for _ in range(count):
            attributes = {"autoopt.tenant_id": tenant, "routing.query": "where is it?"}
            with provider.get_tracer("t").start_as_current_span(ROUTING_SPAN, attributes=attributes) as span:
                made.append(decision(tenant, f"{span.get_span_context().span_id:016x}"))
        provider.shutdown()
        deadline = time.monotonic() + 60
        while len(annotated(phoenix, made)) < count:
            assert time.monotonic() < deadline, "the spans were not stored"
            time.sleep(0.2)
        return made

    return make


def annotated(phoenix: Phoenix, decisions: list[Decision]) -> dict[str, list[dict[str, Any]]]:
    """The annotations of those spans that Phoenix has, by span."""
    project = project_name(decisions[0].tenant_id)
    answer = httpx.get(f"{phoenix.endpoint}/v1/projects/{project}/spans", params={"limit": 1000})
    found: dict[str, list[dict[str, Any]]] = {
        span["context"]["span_id"]: [] for span in (answer.json()["data"] if answer.is_success else [])
    }
    for batch in range(0, len(found), 100):
        params = {"span_ids": [*found][batch : batch + 100], "limit": 1000}
        notes = httpx.get(f"{phoenix.endpoint}/v1/projects/{project}/span_annotations", params=params)
        for note in notes.raise_for_status().json()["data"]:
            found[note["span_id"]].append(note)
    return found


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"correct": "yes"}, "neither true nor false"),
        ({"correct": 2}, "neither true nor false"),
        ({"correction": ""}, "no text, or empty"),
        ({"correction": " \n"}, "no text, or empty"),
        ({"correction": ["a"]}, "no text, or empty"),
        ({"correction": "x" * 5000}, "longer than 4000"),
        ({"score": float("nan")}, "no finite number"),
        ({"score": float("inf")}, "no finite number"),
        ({"score": "0.5"}, "no finite number"),
        ({"score": True}, "no finite number"),
        ({"score": 10**400}, "no finite number"),
        ({"correct": True, "kind": "ROBOT"}, "pass one of HUMAN, LLM, CODE"),
        ({"correct": True, "by": None}, "no text of up to 200"),
        ({"correct": True, "by": "x" * 201}, "no text of up to 200"),
    ],
)
def test_what_cannot_be_stored_is_refused_when_it_is_given_and_not_quoted(
    given: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=match) as error:
        Serving(str(tmp_path)).feedback(decision("acme", "f" * 16), **given)
    assert "\n" not in str(error.value)
    assert "xxx" not in str(error.value)


def test_what_can_be_stored_after_cleaning_is_cleaned_and_numbers_of_all_kinds_are_scores(
    phoenix: Phoenix, tenant: str, stored: Callable[..., list[Decision]], tmp_path: Path
) -> None:
    first, second, third = stored(tenant, 3)
    serving = Serving(str(tmp_path), phoenix_endpoint=phoenix.endpoint)
    serving.feedback(first, correct=True, by="li \ud83d")  # an emoji that an upstream cut
    serving.feedback(second, correction=" report\0agent ", by="li\0")
    serving.feedback(third, score=np.float32(0.5), by="  ")  # ty: ignore[invalid-argument-type] - applications do
    assert serving.flush(30)
    assert serving.problems() == []
    notes = {span: note for span, (note,) in annotated(phoenix, [first]).items()}
    of_first, of_second, of_third = (notes[decision.spans[decision.module]] for decision in (first, second, third))
    assert of_first["identifier"] == "li \ufffd"
    assert of_second["identifier"] == "li\ufffd"
    assert of_second["metadata"] == {"correction": "report\ufffdagent"}
    assert (of_third["result"]["score"], of_third["identifier"]) == (0.5, "human")


@pytest.mark.parametrize("odd_span_id", [7, b"x"], ids=["refused by Phoenix", "no JSON"])
def test_one_piece_that_is_refused_costs_no_other_of_any_tenant(
    odd_span_id: Any,
    phoenix: Phoenix,
    tenant: str,
    stored: Callable[..., list[Decision]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Decisions are plain data that applications keep, so what comes back may be anything."""
    own, others = stored(tenant, 40), stored(f"{tenant}2", 40)
    serving = Serving(str(tmp_path), phoenix_endpoint=phoenix.endpoint)
    for each in [*own, decision(tenant, odd_span_id), *others]:
        serving.feedback(each, correct=True, by=SECRET)
    assert serving.flush(60)
    for decisions in (own, others):
        assert [len(notes) for notes in annotated(phoenix, decisions).values()] == [1] * 40
    (problem,) = serving.problems()
    assert problem.what.startswith("feedback was lost (1 so far)")
    assert len(problem.what) < 200
    assert SECRET not in caplog.text + problem.what
    assert sum("feedback was lost" in record.getMessage() for record in caplog.records) == 1


class Stumbling(BaseHTTPRequestHandler):
    """Passes on to the real Phoenix, but fails like a database does for one piece. Keeps how many were in each."""

    phoenix: str
    stumbles_over: str
    sizes: list[int]
    answers: threading.Event

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        pieces = json.loads(body)["data"]
        self.sizes.append(len(pieces))
        self.answers.wait(20)
        status, answer = 500, b"could not serialize " + body
        if self.stumbles_over not in {piece["span_id"] for piece in pieces}:
            headers = {"content-type": "application/json"}
            response = httpx.post(self.phoenix + self.path, content=body, headers=headers)
            status, answer = response.status_code, response.content
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def stumbling(phoenix: Phoenix) -> Iterator[tuple[str, type[Stumbling]]]:
    own = {"phoenix": phoenix.endpoint, "stumbles_over": "", "sizes": [], "answers": threading.Event()}
    handler = type("Own", (Stumbling,), own)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_one_piece_that_a_server_fails_over_is_soon_sent_alone_and_given_up_alone(
    phoenix: Phoenix,
    tenant: str,
    stored: Callable[..., list[Decision]],
    tmp_path: Path,
    stumbling: tuple[str, type[Stumbling]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint, handler = stumbling
    made = stored(tenant, 20)
    handler.stumbles_over = str(made[7].span_id)
    serving = Serving(str(tmp_path), phoenix_endpoint=endpoint)
    monkeypatch.setattr(sending, "_RETRY_SECONDS", (0.05, 0.2))
    for each in made:
        serving.feedback(each, correct=True, by=SECRET)
    handler.answers.set()  # only now, so that the pieces are sent together, however slow this machine is
    assert not serving.flush(20)
    found = annotated(phoenix, made)
    assert [span for span, notes in found.items() if not notes] == [made[7].span_id]
    assert max(handler.sizes) > 1
    assert handler.sizes[-1] == 1
    monkeypatch.setattr(sending, "GIVE_UP_SECONDS", 0)
    assert serving.flush(10)
    assert "HTTP 500" in serving.problems()[0].what
    assert SECRET not in caplog.text + serving.problems()[0].what


def test_feedback_goes_where_the_decisions_go(
    phoenix: Phoenix, tenant: str, stored: Callable[..., list[Decision]], tmp_path: Path
) -> None:
    """Nothing names the address but `trace_to_phoenix`, which may come after `Serving`."""
    (made,) = stored(tenant, 1)
    provider = TracerProvider()
    serving = Serving(str(tmp_path), tracer_provider=provider)
    trace_to_phoenix(phoenix.endpoint, tracer_provider=provider)
    serving.feedback(made, correct=True, wait=True)
    assert [note["result"]["label"] for note in annotated(phoenix, [made])[str(made.span_id)]] == ["correct"]
    provider.shutdown()
