"""A provider changes its model: outcomes fall, the next run asks the model again, and the cause is named."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import PlayedRequest, PlayedSpan
from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.monitoring.alerts.collect import COLLECTORS, AlertSource, start_cursor
from autoopt_pipeline.monitoring.alerts.models import Kind
from autoopt_pipeline.names import QUALITY_SENSOR
from autoopt_pipeline.optimization import preparation
from autoopt_pipeline.registry.quality_records import QualityFall, read_checks, read_falls, write_checks
from autoopt_pipeline.registry.replays import reported_replays
from autoopt_pipeline.span_contract import ROUTING_SPAN
from tests.support.command_line import autoopt
from tests.support.llm_server import Answered, LLMServer, Sent
from tests.support.materializing import materialize, metadata_of
from tests.support.scraped_metrics import exporter, scraped
from tests.support.sensor_daemon import daemon_of
from tests.support.tenant_history import configure

NOW = datetime.now(UTC)
AGENTS = ("search_agent", "report_agent")


def query_in(sent: Sent) -> str:
    return re.findall(r"\[\[ ## query ## \]\]\n(.*)", sent.question)[-1]


def provider(changed: float) -> Callable[[Sent], Answered]:
    """Answers always alike, but another model answers a share of the requests with the other agent."""

    def answer(sent: Sent) -> Answered:
        query = query_in(sent)
        place = (unit_interval(query) < 0.5) ^ (unit_interval(f"changed {query}") < changed)
        return Answered(
            f"[[ ## reasoning ## ]]\nknown\n\n[[ ## agent ## ]]\n{AGENTS[place]}\n\n"
            "[[ ## confidence ## ]]\n0.9\n\n[[ ## completed ## ]]"
        )

    return answer


def requests(count: int, begin: float, end: float, right: float) -> list[PlayedRequest]:
    """Requests from so many days ago until so many, with outcomes that are equally good for both agents."""
    made = []
    for i in range(count):
        attributes = {
            "routing.query": f"question number {i} of {count}",
            "routing.chosen_agent": AGENTS[i % 2],
            "routing.confidence": 0.9,
            "routing.success": i // 2 * 7 % 10 < 10 * right,
        }
        time = NOW - timedelta(days=begin - (begin - end) * i / count)
        made.append(PlayedRequest(time, 0.1, (PlayedSpan(ROUTING_SPAN, attributes, False, ()),)))
    return made


class Life:
    """A tenant whose application serves the baseline, and what its runs and the sensor make of it."""

    def __init__(
        self,
        parts: Connections,
        instance: dg.DagsterInstance,
        tenant: str,
        server: LLMServer,
        patch: pytest.MonkeyPatch,
    ) -> None:
        self.parts, self.instance, self.tenant, self.server, self.patch = parts, instance, tenant, server, patch
        server.answer = provider(0)

    def configure(self, replay_calls: int) -> None:
        lm = {"model": "openai/test", "api_base": self.server.url, "answer_format": "chat"}
        quality = {"replay_calls": replay_calls}
        configure(self.parts.configs, self.tenant, modules={"routing": {}}, lm=lm, quality=quality)

    def run(self) -> tuple[dict, list[str]]:
        """Its report, and the queries that the model was asked."""
        before = self.server.calls
        reported = metadata_of(materialize(self.instance, self.tenant, ["routing"]), "routing")
        return reported, [query_in(sent) for sent in self.server.sent[before:]]

    def check(self) -> str | None:
        checks = read_checks(self.parts.files)
        due = {tenant: each.model_copy(update={"due": NOW}) for tenant, each in checks.items()}
        if due:
            write_checks(self.parts.files, due)
        with daemon_of(self.instance, self.patch) as dagster:
            (tick,) = dagster.tick(QUALITY_SENSOR)
        return tick.skip_reason

    @property
    def fall(self) -> QualityFall:
        return read_falls(self.parts.files)[self.tenant, "routing"]


@pytest.fixture
def life(
    parts: Connections,
    instance: dg.DagsterInstance,
    tenant: str,
    server: LLMServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Life:
    # A run ends before its search, which is not what this is about.
    monkeypatch.setattr(preparation, "MIN_TRAIN", 10**6)
    return Life(parts, instance, tenant, server, monkeypatch)


def test_a_changed_model_is_named_by_the_run_that_the_fall_makes_due(life: Life, tenant: str) -> None:
    life.configure(30)
    send_traffic(life.parts.phoenix, tenant, requests(600, 6, 3, 0.9))
    source = AlertSource(life.instance, ["routing"], [], alert_after=3, until=datetime.now(UTC) + timedelta(minutes=9))
    cursor = start_cursor(source)
    reported, asked = life.run()
    assert "openai/test was asked 24 held-out requests" in reported["report"]
    assert len(set(asked)) == len(asked) == reported["lm_calls"] == 24
    assert reported_replays(life.parts.files) == []

    life.server.answer = provider(0.3)
    send_traffic(life.parts.phoenix, tenant, requests(300, 3, 0.5, 0.6))
    assert "1 modules fell" in (life.check() or "")
    # The reference is younger than the simulated fall; let it be older.
    artifacts = life.parts.artifacts(tenant, "routing")
    kept = artifacts.replay_set(None)
    assert kept
    earlier = {"answered_at": NOW - timedelta(days=6), "same_at": NOW - timedelta(days=6)}
    artifacts.keep_replay_set(kept.model_copy(update=earlier))
    assert life.fall.cause == "unknown: the model or the traffic"
    assert life.fall.detail == "the next run asks the model again what it was asked before"

    reported, again = life.run()
    (result,) = reported_replays(life.parts.files)
    assert sorted(again[:24]) == sorted(asked)
    doubted = {query for query in asked if unit_interval(f"changed {query}") < 0.3}
    assert set(again[24:]) <= doubted
    assert len(again) == reported["lm_calls"] == 24 + min(6, len(doubted)) == 24 + result.repeated
    assert (result.asked, result.changed, result.returned) == (24, len(doubted), 0)
    assert result.p < 0.05
    said = (
        f"openai/test answers {len(doubted)} of 24 held-out requests differently than on {earlier['same_at']:%Y-%m-%d}"
    )
    assert said in reported["report"].replace("&#95;", "_")

    assert "0 modules fell" in (life.check() or "")
    assert reported_replays(life.parts.files) == []
    assert (life.fall.cause, life.fall.detail) == ("the language model", said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", life.instance.root_directory)
        assert f"the language model; {said}" in " ".join(autoopt("why", tenant, "routing").split())
    alert, _ = COLLECTORS[Kind.QUALITY_FELL](source, cursor)
    assert alert
    found, explained = alert.affected
    assert "the next run asks the model again" in found.detail
    assert explained.detail.endswith(f"the language model; {said}")
    shown = {key[1] for key in scraped(exporter(life.instance)) if key[0] == "autoopt_quality_fall_timestamp_seconds"}
    assert shown == {"the language model"}


def test_where_the_model_answers_as_before_the_traffic_is_named(life: Life, tenant: str) -> None:
    life.configure(30)
    send_traffic(life.parts.phoenix, tenant, [*requests(600, 6, 3, 0.9), *requests(300, 3, 0.5, 0.6)])
    life.run()
    artifacts = life.parts.artifacts(tenant, "routing")
    kept = artifacts.replay_set(None)
    assert kept
    artifacts.keep_replay_set(kept.model_copy(update={"answered_at": NOW - timedelta(days=6)}))
    assert "1 modules fell" in (life.check() or "")
    life.run()
    assert "0 modules fell" in (life.check() or "")
    assert life.fall.cause == "traffic within classes"
    assert life.fall.detail.startswith("openai/test answers all 24 held-out requests as on")


def test_without_leave_the_model_is_not_asked_and_the_cause_says_what_to_set(life: Life, tenant: str) -> None:
    life.configure(0)
    send_traffic(life.parts.phoenix, tenant, [*requests(600, 6, 3, 0.9), *requests(300, 3, 0.5, 0.6)])
    assert "1 modules fell" in (life.check() or "")
    assert life.run()[1] == []
    assert life.fall.detail.startswith("set quality.replay_calls=60, and the next run")
