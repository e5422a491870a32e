"""Comparisons as they stand in a real Phoenix."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import PlayedRequest, PlayedSpan
from autoopt_pipeline.errors import InvalidTenantId, PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.span_contract import ROUTING_SPAN
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.experiments import (
    ComparedRow,
    ProgramAnswer,
    Published,
    dataset_name,
    forget_in_datasets,
    publish_comparison,
)
from autoopt_pipeline.traces.reader import collect
from tests.support.phoenix_server import PhoenixServer

ON_POSTGRES_TOO = True
RIGHT = ProgramAnswer({"agent": "search_agent"}, 1.0, 0.9)
PARTLY = ProgramAnswer({"agent": "search_agent", "entities": ["x"]}, 0.5, 0.7)
WRONG = ProgramAnswer({"agent": "report_agent"}, 0.0, 0.4)
NOTHING = ProgramAnswer(None, 0.0)
CYCLE = (RIGHT, PARTLY, WRONG, NOTHING)


def row(
    number: int, incumbent: ProgramAnswer = WRONG, candidate: ProgramAnswer = RIGHT, query: str = ""
) -> ComparedRow:
    return ComparedRow(
        span_id=f"{number:016x}",
        trace_id=f"{number:032x}",
        inputs={"query": query or f"question number {number}"},
        right={"agent": "search_agent"},
        incumbent=incumbent,
        candidate=candidate,
    )


def publish(
    phoenix: Phoenix,
    tenant: str,
    rows: list[ComparedRow],
    run_id: str = "run-1",
    verdict: str = "promoted",
    keep: int = 10,
) -> Published:
    return publish_comparison(
        phoenix, tenant, "routing", rows, incumbent="v1", candidate="v2", verdict=verdict, run_id=run_id, keep=keep
    )


def get(phoenix: Phoenix, path: str, **params: str) -> Any:
    return httpx.get(f"{phoenix.endpoint}/v1/{path}", params=params).raise_for_status().json()


def experiments(phoenix: Phoenix, published: Published) -> list[dict[str, Any]]:
    return get(phoenix, f"datasets/{published.dataset_id}/experiments", limit="1000")["data"]


def compared_ids(published: Published) -> list[str]:
    return parse_qs(urlsplit(published.compare_url).query)["experimentId"]


def results(phoenix: Phoenix, experiment_id: str) -> dict[str, tuple[Any, float, str]]:
    """Output, score and label by query."""
    exported = get(phoenix, f"experiments/{experiment_id}/json")
    assert all(len(run["annotations"]) == 1 for run in exported)
    assert {(a["name"], a["annotator_kind"]) for run in exported for a in run["annotations"]} == {("score", "CODE")}
    return {
        run["input"]["query"]: (run["output"], run["annotations"][0]["score"], run["annotations"][0]["label"])
        for run in exported
    }


def held(phoenix: Phoenix, published: Published) -> list[dict[str, Any]]:
    path = f"datasets/{published.dataset_id}/examples"
    return get(phoenix, path, version_id=published.dataset_version_id)["data"]["examples"]


def test_both_programs_answers_stand_beside_the_right_ones(phoenix: Phoenix, tenant: str) -> None:
    rows = [row(i, CYCLE[i % 4], CYCLE[(i + 1) % 4]) for i in range(8)]
    published = publish(phoenix, tenant, rows)

    examples = {example["id"]: example for example in held(phoenix, published)}
    assert {span_id: example["input"] for span_id, example in examples.items()} == {r.span_id: r.inputs for r in rows}
    assert all(example["output"] == {"agent": "search_agent"} for example in examples.values())
    assert examples[rows[3].span_id]["metadata"] == {"trace_id": rows[3].trace_id}

    incumbent, candidate = compared_ids(published)
    shown = [
        ({"agent": "search_agent", "confidence": 0.9}, 1.0, "right"),
        ({"agent": "search_agent", "entities": ["x"], "confidence": 0.7}, 0.5, "partly"),
        ({"agent": "report_agent", "confidence": 0.4}, 0.0, "wrong"),
        (None, 0.0, "wrong"),
    ]
    assert results(phoenix, incumbent) == {r.inputs["query"]: shown[i % 4] for i, r in enumerate(rows)}
    assert results(phoenix, candidate) == {r.inputs["query"]: shown[(i + 1) % 4] for i, r in enumerate(rows)}


def test_phoenix_compares_them_on_one_version_of_the_dataset(phoenix: Phoenix, tenant: str) -> None:
    published = publish(phoenix, tenant, [row(i, NOTHING) for i in range(3)], verdict="rejected", run_id="r7")
    for url in (published.compare_url, published.dataset_url):
        assert httpx.get(url).status_code == 200
    incumbent, candidate = (get(phoenix, f"experiments/{one}")["data"] for one in compared_ids(published))
    assert {incumbent["dataset_version_id"], candidate["dataset_version_id"]} == {published.dataset_version_id}
    assert {incumbent["dataset_id"], candidate["dataset_id"]} == {published.dataset_id}
    assert (incumbent["name"], candidate["name"]) == ("incumbent v1", "candidate v2")
    assert candidate["metadata"] == {
        "tenant": tenant,
        "module": "routing",
        "role": "candidate",
        "version": "v2",
        "verdict": "rejected",
        "autoopt_run_id": "r7",
    }
    assert (incumbent["failed_run_count"], incumbent["missing_run_count"]) == (3, 0)  # no valid answer
    assert (candidate["failed_run_count"], candidate["missing_run_count"]) == (0, 0)

    # What Phoenix's page for comparisons asks: the answers of both experiments for each example.
    query = """query ($base: ID!, $other: [ID!]!) {
        compareExperiments(baseExperimentId: $base, compareExperimentIds: $other, first: 10) { edges { node {
            repeatedRunGroups { experimentId runs { annotations { edges { node { name score } } } } } } } } }"""
    variables = {"base": incumbent["id"], "other": [candidate["id"]]}
    answer = httpx.post(f"{phoenix.endpoint}/graphql", json={"query": query, "variables": variables}).json()
    groups = [edge["node"]["repeatedRunGroups"] for edge in answer["data"]["compareExperiments"]["edges"]]
    scores = [
        {group["experimentId"]: group["runs"][0]["annotations"]["edges"][0]["node"]["score"] for group in both}
        for both in groups
    ]
    assert scores == [{incumbent["id"]: 0.0, candidate["id"]: 1.0}] * 3


def test_an_example_leads_to_its_trace(phoenix: Phoenix, tenant: str) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    span = PlayedSpan(ROUTING_SPAN, {"routing.query": "where?"})
    request = PlayedRequest(now - timedelta(minutes=5), 0.1, (span,))
    send_traffic(phoenix, tenant, [request])
    (read,) = collect(phoenix, tenant, get_module("routing"), start=now - timedelta(hours=1), end=now).decisions
    published = publish(phoenix, tenant, [replace(row(1), span_id=read.span_id, trace_id=read.trace_id)])
    assert [example["source"]["span_id"] for example in held(phoenix, published)] == [read.span_id]


def test_publishing_a_run_again_replaces_what_it_published(phoenix: Phoenix, tenant: str) -> None:
    first = publish(phoenix, tenant, [row(1), row(2)])
    again = publish(phoenix, tenant, [row(1, candidate=PARTLY), row(2)])
    assert again.dataset_version_id == first.dataset_version_id  # the same holdout
    assert {found["id"] for found in experiments(phoenix, again)} == set(compared_ids(again))
    assert results(phoenix, compared_ids(again)[1])["question number 1"][1] == 0.5


def test_a_publication_that_broke_off_is_made_good_by_the_next(
    phoenix: Phoenix, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(i) for i in range(6)]
    original = httpx.Client.request
    runs: list[str] = []

    def failing(self: httpx.Client, method: str, url: str, **kwargs: Any) -> httpx.Response:
        if str(url).endswith("/runs"):
            runs.append(str(url))
            if len(runs) > 8:
                return httpx.Response(503, request=httpx.Request(method, f"{phoenix.endpoint}/{url}"))
        return original(self, method, url, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(httpx.Client, "request", failing)
        with pytest.raises(PhoenixUnavailable, match="503"):
            publish(phoenix, tenant, rows)
    published = publish(phoenix, tenant, rows)
    assert [found["missing_run_count"] for found in experiments(phoenix, published)] == [0, 0]
    assert len(held(phoenix, published)) == 6


def test_another_holdout_is_another_version_and_leaves_old_results_as_they_were(phoenix: Phoenix, tenant: str) -> None:
    first = publish(phoenix, tenant, [row(1), row(2), row(3)])
    before = [results(phoenix, one) for one in compared_ids(first)]
    changed = replace(row(2), right={"agent": "report_agent"})
    second = publish(phoenix, tenant, [changed, row(3), row(4)], run_id="run-2")

    assert second.dataset_id == first.dataset_id
    assert second.dataset_version_id != first.dataset_version_id
    assert [results(phoenix, one) for one in compared_ids(first)] == before
    assert sorted(results(phoenix, compared_ids(second)[0])) == [f"question number {i}" for i in (2, 3, 4)]
    assert [example["id"] for example in held(phoenix, first)] == [row(i).span_id for i in (1, 2, 3)]
    assert {example["id"]: example["output"]["agent"] for example in held(phoenix, second)} == {
        row(2).span_id: "report_agent",
        row(3).span_id: "search_agent",
        row(4).span_id: "search_agent",
    }


def test_versions_made_in_one_second_are_not_mixed_up(phoenix: Phoenix, tenant: str) -> None:
    """Phoenix on SQLite keeps whole seconds, and asks for the latest version by time when nothing is new."""
    one, other = [row(1), row(2)], [row(2), row(3)]
    time.sleep(1 - time.time() % 1)
    made = [publish(phoenix, tenant, rows, run_id=f"run-{i}") for i, rows in enumerate([one, other, other, one, other])]
    wanted = [{r.span_id for r in rows} for rows in (one, other, other, one, other)]
    assert [{example["id"] for example in held(phoenix, published)} for published in made] == wanted
    assert made[1].dataset_version_id == made[2].dataset_version_id


def test_only_the_newest_comparisons_are_kept_and_other_peoples_experiments(phoenix: Phoenix, tenant: str) -> None:
    first = publish(phoenix, tenant, [row(1)], run_id="run-0")
    url = f"{phoenix.endpoint}/v1/datasets/{first.dataset_id}/experiments"
    somebodys = httpx.post(url, json={"name": "mine"}).raise_for_status().json()["data"]["id"]
    made = [publish(phoenix, tenant, [row(i % 2)], run_id=f"run-{i}", keep=2) for i in range(1, 5)]
    kept = {one for published in made[-2:] for one in compared_ids(published)}
    assert {found["id"] for found in experiments(phoenix, first)} == {*kept, somebodys}


def test_the_projects_that_phoenix_makes_for_experiments_never_come_in_sight(phoenix: Phoenix, tenant: str) -> None:
    def in_sight() -> set[str]:
        answer = httpx.get(f"{phoenix.endpoint}/v1/projects", params={"limit": 1000}).raise_for_status()
        return {project["name"] for project in answer.json()["data"]}

    before = in_sight()
    for i in range(3):
        publish(phoenix, tenant, [row(i)], run_id=f"run-{i}", keep=1)
    assert in_sight() == before
    assert forget_in_datasets(phoenix, tenant, "routing", span_ids=[row(0).span_id]) == 1
    assert in_sight() == before


def test_tenants_and_modules_have_datasets_of_their_own(phoenix: Phoenix, tenant: str) -> None:
    names = [(f"{tenant}:eu", "routing"), (f"{tenant}-eu", "routing"), (tenant, "routing"), (tenant, "modality")]
    assert len({dataset_name(*name) for name in names}) == 4
    one, other = publish(phoenix, f"{tenant}:eu", [row(1)]), publish(phoenix, f"{tenant}-eu", [row(2)])
    assert one.dataset_id != other.dataset_id
    assert [example["id"] for example in held(phoenix, one)] == [row(1).span_id]
    assert httpx.get(one.compare_url).status_code == 200
    name = dataset_name(f"{tenant}:eu", "routing")
    assert get(phoenix, "datasets", name=name)["data"][0]["description"].startswith(
        f"Held-out traces of tenant {tenant}:eu"
    )
    assert get(phoenix, f"datasets/{name}/splits") == {"data": [], "next_cursor": None}  # a path with the name in it
    with pytest.raises(InvalidTenantId):
        publish(phoenix, "a/b", [row(1)])


def test_any_text_comes_through_whole(phoenix: Phoenix, tenant: str) -> None:
    texts = ["Zürich 東京 🚀 \u202e \t\n\"'\\{}", "x" * 4000, "🚀" * 4000, "<script>alert(1)</script>", "$ref: %s {0}"]
    published = publish(phoenix, tenant, [row(i, query=text) for i, text in enumerate(texts)])
    assert [example["input"]["query"] for example in held(phoenix, published)] == texts
    assert list(results(phoenix, compared_ids(published)[1])) == texts


def test_nothing_is_printed(phoenix: Phoenix, tenant: str, capfd: pytest.CaptureFixture[str]) -> None:
    publish(phoenix, tenant, [row(1), row(2)])
    forget_in_datasets(phoenix, tenant, "routing", span_ids=[row(1).span_id])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("by", ["span", "query"])
def test_what_is_forgotten_is_gone_from_all_of_phoenix(
    phoenix: Phoenix, phoenix_server: PhoenixServer, tenant: str, by: str
) -> None:
    secret = f"the secret of {tenant}"
    answer = ProgramAnswer({"agent": secret}, 1.0)
    old = publish(phoenix, tenant, [row(1, candidate=answer, query=secret), row(2)])
    new = publish(phoenix, tenant, [row(2), row(3)], run_id="run-2")
    assert secret not in str(held(phoenix, new))  # it stands in an old version only
    assert tables_with(phoenix_server.database_url, secret) >= {"dataset_example_revisions", "experiment_runs"}

    what = {"span_ids": [row(1).span_id]} if by == "span" else {"queries": [secret]}
    assert forget_in_datasets(phoenix, tenant, "routing", **what) == 1
    assert tables_with(phoenix_server.database_url, secret) == set()
    assert get(phoenix, "datasets", name=dataset_name(tenant, "routing"))["data"] == []
    for path in (f"datasets/{old.dataset_id}/examples", *(f"experiments/{one}/json" for one in compared_ids(old))):
        assert httpx.get(f"{phoenix.endpoint}/v1/{path}").status_code == 404

    assert forget_in_datasets(phoenix, tenant, "routing", **what) == 0
    assert len(held(phoenix, publish(phoenix, tenant, [row(2)], run_id="run-3"))) == 1


def test_forgetting_what_was_never_published_takes_nothing_away(phoenix: Phoenix, tenant: str) -> None:
    published = publish(phoenix, tenant, [row(1), row(2)])
    assert forget_in_datasets(phoenix, tenant, "routing", span_ids=["f" * 16], queries=["question"]) == 0
    assert len(experiments(phoenix, published)) == 2


def test_two_rows_of_one_span_are_refused(phoenix: Phoenix, tenant: str) -> None:
    with pytest.raises(PhoenixRefused, match="Duplicate"):
        publish(phoenix, tenant, [row(1), row(1)])


def test_a_phoenix_that_is_down_is_an_error_for_people() -> None:
    down = Phoenix("http://127.0.0.1:9")
    with pytest.raises(PhoenixUnavailable, match=r"127\.0\.0\.1:9"):
        publish(down, "acme", [row(1)])
    with pytest.raises(PhoenixUnavailable):
        forget_in_datasets(down, "acme", "routing", span_ids=[row(1).span_id])


def test_a_phoenix_too_old_for_this_is_refused_with_the_reason(old_server: str) -> None:
    with pytest.raises(PhoenixRefused, match=r"14\.0\.0") as error:
        publish(Phoenix(old_server), "acme", [row(1)])
    assert "version" in error.value.remedy


@pytest.fixture
def old_server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"14.0.0")

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PARTS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]|\.(?=[A-Za-z0-9])){0,8}", fullmatch=True)
TENANTS = PARTS | st.builds("{}:{}".format, PARTS, PARTS)
MODULES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)


@given(st.tuples(TENANTS, MODULES), st.tuples(TENANTS, MODULES))
def test_no_two_modules_of_any_tenants_share_a_dataset(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (dataset_name(*one) == dataset_name(*other)) == (one == other)
    assert quote(dataset_name(*one), safe="") == dataset_name(*one)


def tables_with(database_url: str, text: str) -> set[str]:
    """The tables of Phoenix's database in which a text stands, whatever they are."""
    engine = sqlalchemy.create_engine(database_url)
    with engine.connect() as connection:
        tables = sqlalchemy.inspect(connection).get_table_names()
        assert "dataset_example_revisions" in tables
        rows = {table: connection.execute(sqlalchemy.text(f'SELECT * FROM "{table}"')).all() for table in tables}  # noqa: S608
    engine.dispose()
    return {table for table, found in rows.items() if any(text in str(value) for values in found for value in values)}
