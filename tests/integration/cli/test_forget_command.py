"""`autoopt forget` against a real Phoenix."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import httpx
import pytest
from dagster._core.test_utils import create_run_for_test

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import SyntheticRequest, TrafficProfile, simulate_requests
from autoopt_pipeline.errors import ArtifactStoreUnavailable
from autoopt_pipeline.modules.catalog import get_module, modules
from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.orchestration.partitions import register_tenant, tenants_partitions
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import StoredAnswer
from autoopt_pipeline.registry.replays import ReplayExample, ReplaySet
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, read_config
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.experiments import ComparedRow, ProgramAnswer, dataset_name, publish_comparison
from autoopt_pipeline.traces.lookup import find_asked
from autoopt_pipeline.traces.reader import collect
from tests.support.command_line import AGENTS, autoopt
from tests.support.stored_programs import made_program, store

SECRET = "Send the invoice of Maria Huber to maria@example.org"
LEARNT = "Send the invoice of Maria Huber to <mail>"
OTHERS = [f"question number {i}" for i in range(4)]
NOW = datetime.now(UTC).replace(microsecond=0)
RIGHT = ProgramAnswer({"agent": "search_agent"}, 1.0, 0.9)


@pytest.fixture
def trace_id(phoenix: Phoenix, tenant: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tenant whose Phoenix has the secret's trace among others, and whose programs learnt from all of them."""
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    autoopt("tenants", "add", tenant, *AGENTS)
    agents = ["search_agent", "report_agent"]
    truths = [SyntheticRequest(query, {"agent": agents[0]}) for query in [SECRET, *OTHERS]]
    habits = TrafficProfile(reviewed=1.0, malformed=0.0)
    start = NOW - timedelta(hours=1)
    send_traffic(
        phoenix,
        tenant,
        list(simulate_requests(truths, {"agent": agents}, habits, start=start, end=NOW, rng=random.Random(1))),
    )
    for number, module in enumerate(("routing", "unified")):
        store(artifacts(home, tenant, module), made_program(tenant, module, demos=[LEARNT, *OTHERS]), 2 * number)
        store(
            artifacts(home, tenant, module),
            made_program(tenant, module, demos=[*OTHERS, LEARNT]),
            2 * number + 1,
            active=True,
        )
    (secret,) = [each for each in read(phoenix, tenant) if SECRET in str(each.attributes)]
    keep_asked(home, tenant, secret.trace_id)
    rows = [
        ComparedRow(f"{number:016x}", f"{number:032x}", {"query": query}, RIGHT.values or {}, RIGHT, RIGHT)
        for number, query in enumerate([LEARNT, *OTHERS])
    ]
    publish_comparison(phoenix, tenant, "routing", rows, incumbent="v1", candidate="v2", verdict="promoted", run_id="r")
    return secret.trace_id


def keep_asked(home: Path, tenant: str, trace_id: str) -> None:
    """Let the model of the baseline and of the active version have been asked the secret among others."""
    routing = artifacts(home, tenant)
    active, answer, now = routing.active(), StoredAnswer(values=RIGHT.values, confidence=0.9), datetime.now(UTC)
    for version in (None, active.version if active else None):
        asked = tuple(
            ReplayExample(span_id=f"{number:016x}", trace_id=trace, inputs={"query": query}, answer=answer)
            # The query of one came under another trace, and another was rewritten.
            for number, (trace, query) in enumerate(
                [(trace_id, "asked of Maria Huber"), ("other", LEARNT), *(("other", query) for query in OTHERS)]
            )
        )
        routing.keep_replay_set(
            ReplaySet(version=version, program=None, lm="m", answered_at=now, same_at=now, examples=asked)
        )


def read(phoenix: Phoenix, tenant: str) -> Sequence[LoggedDecision]:
    return collect(phoenix, tenant, get_module("routing"), start=NOW - timedelta(hours=1), end=NOW).decisions


def artifacts(home: Path, tenant: str, module: str = "routing") -> VersionStore:
    return VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), tenant, module)


def config_of(home: Path, tenant: str) -> RoutingConfigUnified:
    return read_config(open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"), tenant)[0]


def holding(home: Path) -> list[Path]:
    """Files under the home with the secret's words in their bytes."""
    return [p for p in home.rglob("*") if p.is_file() and b"Maria Huber" in p.read_bytes()]


def test_a_trace_is_forgotten_everywhere_and_the_command_says_what_it_did(
    phoenix: Phoenix, tenant: str, home: Path, trace_id: str
) -> None:
    assert len(holding(home)) == 6
    before = artifacts(home, tenant).active()
    said = autoopt("forget", tenant, trace_id)
    assert holding(home) == []
    asked = artifacts(home, tenant).replay_set(None)
    assert asked
    assert [example.inputs["query"] for example in asked.examples] == OTHERS
    assert phoenix.dataset_id(dataset_name(tenant, "routing")) is None
    config = config_of(home, tenant)
    assert config.excluded_traces == [trace_id]
    assert config.retrain_after("routing") is not None
    assert "unified" not in config.modules  # what the tenant does not run is not begun by forgetting
    after = artifacts(home, tenant).active()
    assert before is not None
    assert after is not None
    assert f"routing: {before.version} -> {after.version}" in said
    assert "routing: 1 examples stood in its Phoenix dataset" in said
    assert f"curl -X DELETE {phoenix.endpoint}/v1/traces/{trace_id}" in said
    unified = artifacts(home, tenant, "unified")
    active = unified.active()
    assert active is not None
    demos = unified.load(active.version).state
    assert [demo["query"] for demo in demos["routing.decide"]["demos"]] == OTHERS
    listed = autoopt("versions", tenant, "routing")
    assert listed.count("withdrawn") >= 2
    assert "withdrawn on" in autoopt("promote", tenant, "routing", before.version, status=2)


def test_a_demo_that_names_its_span_goes_with_the_trace_whatever_its_words(
    phoenix: Phoenix, tenant: str, home: Path, trace_id: str
) -> None:
    spans = {decision.trace_id: decision.span_id for decision in read(phoenix, tenant)}
    other = next(span for trace, span in spans.items() if trace != trace_id)
    program = made_program(tenant, demos=["redacted by other rules", "the same words", SECRET])
    sources = {"decide": [spans[trace_id], other, other]}
    store(artifacts(home, tenant), program.model_copy(update={"demo_sources": sources}), 9, active=True)
    autoopt("forget", tenant, trace_id)
    active = artifacts(home, tenant).active()
    assert active is not None
    demos = artifacts(home, tenant).load(active.version).demos("decide")
    assert [(demo["query"], source) for demo, source in demos] == [("the same words", other), (SECRET, other)]


def test_repeating_it_changes_nothing_more(tenant: str, home: Path, trace_id: str) -> None:
    autoopt("forget", tenant, trace_id)
    config, transitions = config_of(home, tenant), artifacts(home, tenant).transitions()
    said = autoopt("forget", tenant, trace_id.upper())
    assert "the configuration says so already" in said
    assert "withdrawn" not in said
    assert config_of(home, tenant) == config
    assert artifacts(home, tenant).transitions() == transitions


def test_a_call_that_died_is_finished_by_the_next(
    tenant: str, home: Path, trace_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "delete", _dead)
        assert "dead" in autoopt("forget", tenant, trace_id, status=2)
    assert config_of(home, tenant).excluded_traces == [trace_id]
    assert len(holding(home)) == 6
    autoopt("forget", tenant, trace_id)
    assert holding(home) == []
    assert [manifest.verdict for manifest in artifacts(home, tenant).versions()].count("forget") == 1


def _dead(files: ObjectStore, path: str) -> bool:
    raise ArtifactStoreUnavailable("dead", "start again")


def test_what_phoenix_does_not_have_any_more_is_forgotten_by_its_text(
    phoenix: Phoenix, tenant: str, home: Path, trace_id: str
) -> None:
    httpx.delete(f"{phoenix.endpoint}/v1/traces/{trace_id}").raise_for_status()
    refused = autoopt("forget", tenant, trace_id, status=2)
    assert trace_id in refused
    assert "--query" in refused
    assert config_of(home, tenant).excluded_traces == []
    assert len(holding(home)) == 6
    autoopt("forget", tenant, trace_id, "--query", SECRET)
    assert holding(home) == []
    assert phoenix.dataset_id(dataset_name(tenant, "routing")) is None
    assert config_of(home, tenant).excluded_traces == [trace_id]


def test_a_removed_tenants_programs_can_be_cleaned_too(tenant: str, home: Path, trace_id: str) -> None:
    autoopt("tenants", "remove", tenant, "--yes")
    assert "is removed" in autoopt("forget", tenant, trace_id)
    assert holding(home) == []


def test_no_other_tenants_programs_are_touched(tenant: str, home: Path, trace_id: str) -> None:
    other = artifacts(home, f"{tenant}x")
    version = store(other, made_program(f"{tenant}x", demos=[LEARNT]), active=True)
    autoopt("forget", tenant, trace_id)
    assert other.load(version)
    assert len(holding(home)) == 1


def test_while_a_run_is_under_way_it_asks_to_be_repeated(tenant: str, home: Path, trace_id: str) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run = create_run_for_test(
            instance,
            tags={"dagster/partition": tenant},
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset({dg.AssetKey("routing")}),
        )
    said = autoopt("forget", tenant, trace_id, status=2)
    assert f"run {run.run_id} was under way" in said
    assert holding(home) == []


def test_runs_that_quote_the_text_in_their_reports_are_named(tenant: str, home: Path, trace_id: str) -> None:
    quoting = _reported(home, tenant, "- + send the invoice of Maria Huber to &lt;mail> -> search_agent")
    _reported(home, tenant, "- + send the invoice of somebody -> search_agent")
    linking = _reported(home, tenant, f"| [Send](http://phoenix/projects/x/traces/{trace_id}) |")
    _reported(home, f"{tenant}x", "send the invoice of Maria Huber to &lt;mail>")
    assert f"may quote the text (these do: {linking}, {quoting})" in autoopt("forget", tenant, trace_id)


def _reported(home: Path, tenant: str, report: str) -> str:
    """A real run of the tenant's routing with this report."""

    @dg.asset(partitions_def=tenants_partitions)
    def routing() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"report": dg.MetadataValue.md(report)})

    with dg.DagsterInstance.from_config(str(home)) as instance:
        register_tenant(instance, tenant)
        return dg.materialize([routing], partition_key=tenant, instance=instance).run_id


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("nobody", "a" * 32), "nobody"), (("acme", "xyz"), "is not a trace id"), (("acme", "a" * 32), "--query")],
)
def test_what_cannot_be_forgotten_is_refused_in_one_line(
    phoenix: Phoenix, home: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str], words: str
) -> None:
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    autoopt("tenants", "add", "acme", *AGENTS)
    assert words in autoopt("forget", *arguments, status=2)


@pytest.mark.parametrize("openinference", [False, True], ids=["flat keys", "OpenInference JSON"])
def test_a_traces_text_is_found_as_it_is_learnt(phoenix: Phoenix, tenant: str, openinference: bool) -> None:
    truths = [SyntheticRequest(query, {"agent": "a"}) for query in [SECRET, *OTHERS]]
    habits = TrafficProfile(reviewed=1.0, malformed=0.0, openinference=openinference)
    played = simulate_requests(
        truths, {"agent": ["a", "b"]}, habits, start=NOW - timedelta(hours=1), end=NOW, rng=random.Random(1)
    )
    send_traffic(phoenix, tenant, list(played))
    read = collect(phoenix, tenant, get_module("routing"), start=NOW - timedelta(hours=2), end=NOW)
    wanted = {decision.trace_id for decision in read.decisions[:2]}
    asked = find_asked(phoenix, tenant, modules().values(), [*wanted, "0" * 32])
    assert {(each.trace_id, each.span_id) for each in asked} >= {
        (decision.trace_id, decision.span_id) for decision in read.decisions[:2]
    }
    assert {each.query for each in asked} == {SECRET, OTHERS[0]}
    assert {decision.trace_id for decision in read.without(wanted).decisions} == {
        decision.trace_id for decision in read.decisions[2:]
    }
