"""A candidate that is as good and cheaper is promoted, and one that is better and much dearer waits for approval."""

from typing import Any

import pytest

from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.serialization import deserialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import LMPrice, LMSettings, RoutingConfigUnified, with_field
from autoopt_pipeline.tenants.labels import labels_of
from tests.support.llm_server import Answered, LLMServer, Sent
from tests.support.optimizing import CONFIG, END, ROUTING, START, decisions, job

LABELS = labels_of(ROUTING, CONFIG)
TRAFFIC = decisions(1200, TrafficProfile(reviewed=1.0))
PRICE = LMPrice(input=1.0, output=4.0)
WITHOUT_ROUTER = with_field(CONFIG, "local_router", "false")
TOLERANT = with_field(WITHOUT_ROUTER, "objective.max_loss", "0.03")


RIGHT = {e.inputs["query"]: e.right["agent"] for e in ROUTING.build_examples(LABELS, TRAFFIC).examples}


def agent_named(agent: str, sent: Sent) -> Answered:
    fields = {"reasoning": "", "agent": agent, "confidence": 0.9}
    text = "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in fields.items())
    return Answered(text, input_tokens=sum(len(message["content"]) for message in sent.body["messages"]) // 4)


def knowing_with_demos(sent: Sent) -> Answered:
    """A model that is right about most queries if it is shown any demos, and else names the same agent always."""
    asked = sent.question.split("[[ ## query ## ]]\n")[1].split("\n")[0]
    knows = len(sent.body["messages"]) > 2 and len(asked) % 5
    return agent_named(RIGHT.get(asked, "search_agent") if knows else "search_agent", sent)


def over_http(server: LLMServer) -> MeteredLM:
    server.answer = knowing_with_demos
    settings = LMSettings(model="openai/test", api_base=server.url, answer_format="chat", price=PRICE)
    return metered_lm(settings, Meter(9000, 10**9))


def activate_with_demos(artifacts: VersionStore, server: LLMServer) -> str:
    """Promote a program with as many demos as the tenant allows."""
    first = OptimizationJob(ROUTING, dear(WITHOUT_ROUTER), TRAFFIC, START, END, "first", only="labeled-few-shot")
    report = optimize(first, over_http(server), artifacts)
    assert report.verdict is Verdict.PROMOTED, report.reason
    return str(report.version)


def dear(config: RoutingConfigUnified) -> RoutingConfigUnified:
    return with_field(with_field(config, "objective.max_cost_increase", "1000"), "rollout.monitor", "false")


def diet(artifacts: VersionStore, server: LLMServer, config: RoutingConfigUnified) -> Report:
    only = OptimizationJob(ROUTING, config, TRAFFIC, START, END, "diet", only="prompt-diet")
    return optimize(only, over_http(server), artifacts)


def demos_of(artifacts: VersionStore, version: str | None) -> int:
    program = deserialize(ROUTING, LABELS, artifacts.load(str(version)))
    return sum(len(predictor.demos) for predictor in program.predictors())


def test_a_program_with_fewer_demos_is_promoted_if_it_is_as_good(server: LLMServer, artifacts: VersionStore) -> None:
    before = activate_with_demos(artifacts, server)
    report = diet(artifacts, server, TOLERANT)
    assert report.verdict is Verdict.PROMOTED, report.reason
    assert report.reason.startswith("proven not worse by more than 3.0 points: 0 fixed, 0 broken")
    assert "less" in report.reason.rsplit("; ", 1)[1]
    assert demos_of(artifacts, report.version) < demos_of(artifacts, before) / 3
    dollars = {program: report.costs[program].dollars for program in (CANDIDATE, INCUMBENT)}
    assert all(dollars.values())
    assert (dollars[CANDIDATE] or 0) < 0.5 * (dollars[INCUMBENT] or 0)
    manifest = artifacts.manifest(str(report.version))
    assert manifest
    assert manifest.gate["max_loss"] == 0.03


def test_where_nothing_may_be_lost_only_a_better_one_is_tested(server: LLMServer, artifacts: VersionStore) -> None:
    activate_with_demos(artifacts, server)
    charged = len(artifacts.ledger())
    report = diet(artifacts, server, with_field(TOLERANT, "objective.max_loss", "0"))
    assert report.verdict is Verdict.REJECTED
    assert "so the holdout was not used" in report.reason
    assert len(artifacts.ledger()) == charged


def test_the_test_goes_on_with_new_traces_until_it_is_proven(server: LLMServer, artifacts: VersionStore) -> None:
    activate_with_demos(artifacts, server)
    report = diet(artifacts, server, with_field(TOLERANT, "objective.max_loss", "0.01"))
    assert report.verdict is Verdict.INCONCLUSIVE, report.reason
    assert "may be as good and is cheaper" in report.reason
    (step,) = artifacts.sequential_test()[-1:]
    assert step.max_loss == 0.01


class TestAMuchDearerCandidate:
    @pytest.fixture
    def priced(self) -> Any:
        return lambda: metered_lm(LMSettings(model="stand-in", price=PRICE), Meter(6000, 10**9))

    def test_waits_for_approval(self, artifacts: VersionStore, priced: Any) -> None:
        only = OptimizationJob(ROUTING, WITHOUT_ROUTER, TRAFFIC[:450], START, END, "run", only="labeled-few-shot")
        report = optimize(only, priced(), artifacts)
        assert report.verdict is Verdict.AWAITING_APPROVAL, report.reason
        assert "times as much, and objective.max_cost_increase is 3; proven better" in report.reason
        assert artifacts.active() is None

    def test_comes_after_one_that_is_clearly_better_and_needs_none(self, artifacts: VersionStore, priced: Any) -> None:
        report = optimize(job(TRAFFIC[:450]), priced(), artifacts)
        dollars = {program: report.costs[program].dollars or 0.0 for program in (CANDIDATE, INCUMBENT)}
        assert report.verdict is Verdict.PROMOTED, report.reason
        assert dollars[CANDIDATE] <= 3 * dollars[INCUMBENT]

    def test_is_no_question_where_the_price_is_unknown(self, artifacts: VersionStore) -> None:
        only = OptimizationJob(ROUTING, WITHOUT_ROUTER, TRAFFIC[:450], START, END, "run", only="labeled-few-shot")
        report = optimize(only, metered_lm(LMSettings(model="stand-in"), Meter(6000, 10**9)), artifacts)
        assert report.verdict is Verdict.PROMOTED, report.reason


def test_where_the_incumbent_leaves_nothing_to_gain_only_cheaper_programs_race(
    server: LLMServer, artifacts: VersionStore
) -> None:
    lm = over_http(server)
    server.answer = lambda sent: agent_named(RIGHT[sent.question.split("[[ ## query ## ]]\n")[1].split("\n")[0]], sent)
    report = optimize(job(TRAFFIC), lm, artifacts)
    assert any("so only cheaper programs race" in note for note in report.notes)
    assert {tried.optimizer.removeprefix("careful ") for tried in report.tried} <= {
        "local-router",
        "local-router + model",
    }
    assert report.lm_calls < 1000
