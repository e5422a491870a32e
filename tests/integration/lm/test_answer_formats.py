"""In which format answers are asked for, and what becomes of answers that cannot be read."""

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import dspy
import pytest

from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.errors import AnswersUnreadable, InvalidRequest
from autoopt_pipeline.evaluation.runner import answer_all, unread_counts
from autoopt_pipeline.lm.adapters import AnswerAdapter
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.modules.answer_format import CHAT, JSON_SCHEMA, answer_format, in_format
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label, LoggedDecision
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.serialization import deserialize, serialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.serving import Serving, language_model
from autoopt_pipeline.tenants.config import LMSettings
from tests.support.llm_server import Answered, LLMServer, Sent
from tests.support.optimizing import CONFIG, decisions, job
from tests.support.sample_decisions import example

ROUTING = get_module("routing")
LABELS = (Label("search_agent"), Label("report_agent"))


@pytest.fixture(scope="module")
def traffic() -> list[LoggedDecision]:
    return decisions(290, TrafficProfile(reviewed=1.0))


def over_http(server: LLMServer, **fields: Any) -> MeteredLM:
    return metered_lm(LMSettings(model="openai/test", api_base=server.url, **fields), Meter(9000, 10**9))


def knowing(traffic: list[LoggedDecision]) -> Any:
    """A model that knows what is right, and says so where it is asked by a schema."""
    right = {
        e.inputs["query"]: e.right["agent"]
        for e in ROUTING.build_examples(tuple(Label(a.name) for a in CONFIG.agents), traffic).examples
    }

    def answer(sent: Sent) -> Answered | None:
        if "response_format" not in sent.body:
            return None
        for query, agent in right.items():
            if query in sent.question:
                return Answered(json.dumps({"reasoning": "", "agent": agent, "confidence": 0.9}))
        return None

    return answer


class TestTheFormatOfAProgram:
    def test_goes_where_the_predictor_goes(self) -> None:
        program = in_format(ROUTING.build_program(LABELS), JSON_SCHEMA)
        optimized = dspy.LabeledFewShot(k=1).compile(program, trainset=[dspy.Example(query="x").with_inputs("query")])
        for predictor in optimized.predictors():
            assert answer_format(predictor.signature.with_instructions("other ones")) == JSON_SCHEMA
        assert answer_format(ROUTING.build_program(LABELS).predictors()[0].signature) == CHAT

    def test_is_stored_with_it(self) -> None:
        program = in_format(ROUTING.build_program(LABELS), JSON_SCHEMA)
        stored = serialize(ROUTING, "acme", LABELS, program)
        assert stored.answer_format == JSON_SCHEMA
        assert answer_format(deserialize(ROUTING, LABELS, stored).predictors()[0].signature) == JSON_SCHEMA
        in_chat = serialize(ROUTING, "acme", LABELS, in_format(program, CHAT))
        assert (in_chat.answer_format, in_chat.answer_formats) == (CHAT, {})
        assert in_chat.digest != stored.digest

    def test_by_a_schema_makes_the_prompt_half(self) -> None:
        sizes = {}
        for wanted in (CHAT, JSON_SCHEMA):
            (predictor,) = in_format(ROUTING.build_program(LABELS), wanted).predictors()
            demo = dspy.Example(query="where", reasoning="r", agent="search_agent", confidence=0.9)
            demos: list[Any] = [demo] * 4  # DSPy declares dicts, and passes examples
            messages = AnswerAdapter().format(predictor.signature, demos, {"query": "which one?"})
            sizes[wanted] = sum(len(message["content"]) for message in messages)
            assert all(label.name in messages[0]["content"] for label in LABELS)
            assert "which one?" in messages[-1]["content"]
        assert 2 * sizes[JSON_SCHEMA] < sizes[CHAT]


class TestAuto:
    def test_takes_the_schema_where_it_is_enforced_and_no_worse(
        self, server: LLMServer, traffic: list[LoggedDecision], artifacts: VersionStore, tmp_path: Path
    ) -> None:
        server.enforces_schema, server.answer = True, knowing(traffic)
        report = optimize(job(traffic), over_http(server), artifacts)
        assert report.verdict is Verdict.PROMOTED
        assert any("candidates use a JSON schema" in note for note in report.notes)
        (manifest,) = artifacts.versions()
        assert manifest.answer_format == JSON_SCHEMA
        assert manifest.lm_settings == {"seed": 9, "temperature": 0.0, "max_tokens": 512}

        serving = Serving(str(tmp_path), lm=language_model("openai/test", api_base=server.url))
        agents = [agent.name for agent in CONFIG.agents]
        serving.decide("acme", "routing", agents=agents, query="what is this?")
        assert "response_format" in server.sent[-1].body
        serving.decide("acme", "modality", query="what is this?")
        assert "response_format" not in server.sent[-1].body  # a baseline, asked as it was before

    def test_keeps_the_chat_format_where_the_schema_is_clearly_worse(
        self, server: LLMServer, traffic: list[LoggedDecision], artifacts: VersionStore
    ) -> None:
        wrong = json.dumps({"reasoning": "I cannot say"})
        server.enforces_schema = True
        server.answer = lambda sent: (
            Answered(wrong) if "response_format" in sent.body and "banana" not in sent.question else None
        )
        report = optimize(job(traffic), over_http(server), artifacts)
        assert any("candidates use DSPy's chat format" in note for note in report.notes)
        assert [manifest.answer_format for manifest in artifacts.versions()] == [CHAT]

    def test_keeps_the_chat_format_where_no_schema_is_enforced(
        self, server: LLMServer, traffic: list[LoggedDecision], artifacts: VersionStore
    ) -> None:
        report = optimize(job(traffic), over_http(server), artifacts)
        assert any("the endpoint enforces no JSON schema" in note for note in report.notes)
        assert sum("response_format" in sent.body for sent in server.sent) == 1


@pytest.mark.parametrize("chosen", [CHAT, JSON_SCHEMA])
def test_a_format_that_was_chosen_is_that_of_all_programs(
    server: LLMServer, traffic: list[LoggedDecision], artifacts: VersionStore, chosen: Any
) -> None:
    server.enforces_schema, server.answer = True, knowing(traffic)
    optimize(job(traffic), over_http(server, answer_format=chosen), artifacts)
    prompts = [sent for sent in server.sent if sent.question.startswith(("query: ", "[[ ## query ## ]]"))]
    assert {"response_format" in sent.body for sent in prompts} == {chosen == JSON_SCHEMA}
    assert {manifest.answer_format for manifest in artifacts.versions()} <= {chosen}


def test_serving_refuses_a_format_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="use 'chat' or 'json_schema'"):
        Serving(str(tmp_path), baseline_format="yaml")  # ty: ignore[invalid-argument-type] - no such format


@pytest.mark.parametrize(
    ("answered", "counted", "remedy"),
    [
        (Answered(None, "length"), "24 truncated", "lm.max_tokens is 512: raise it"),
        (Answered("[[ ## reasoning ## ]]\nwell, let me", "length"), "24 truncated", "lm.max_tokens is 512: raise it"),
        (Answered(None, "stop"), "24 empty", "lm.max_tokens is 512: raise it"),
        (Answered("The search agent, I suppose."), "24 unreadable", "set lm.answer_format=json_schema"),
    ],
)
def test_a_run_in_which_hardly_an_answer_can_be_read_ends_soon_and_as_a_failure(
    server: LLMServer,
    traffic: list[LoggedDecision],
    artifacts: VersionStore,
    answered: Answered,
    counted: str,
    remedy: str,
) -> None:
    server.answer = lambda sent: answered
    with pytest.raises(AnswersUnreadable) as error:
        optimize(job(traffic), over_http(server), artifacts)
    assert f"24 of the first 24 answers cannot be read ({counted})" in error.value.what
    assert remedy in error.value.remedy
    assert server.calls == 24 + 1  # and what shows whether a schema is enforced
    assert (artifacts.versions(), artifacts.ledger()) == ([], [])
    if answered.text:
        assert answered.text[:15] in error.value.what.replace("\\n", " ")


def test_what_cannot_be_read_is_counted_by_program_and_by_why(
    server: LLMServer, traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    def answer(sent: Sent) -> Answered | None:
        digit = crc32(sent.question.encode()) % 20  # the same in every process
        return {0: Answered("no idea"), 1: Answered("", "length"), 2: Answered("")}.get(digit)

    server.answer = answer
    asking = CONFIG.model_copy(update={"local_router": False})  # a router's answers can be read, always
    report = optimize(job(traffic, asking), over_http(server), artifacts)
    assert report.unread.keys() == {"incumbent", "candidate"}
    assert report.unread["incumbent"].keys() == {"unreadable", "truncated", "empty"}
    no_answer = [row for row in report.compared if row.incumbent.unread]
    assert len(no_answer) <= sum(report.unread["incumbent"].values())  # the guard's are counted too
    assert all(row.case.incumbent.score == 0 for row in no_answer)
    assert all(tried.unread for tried in report.tried)
    (manifest,) = artifacts.versions()
    assert manifest.unread == report.unread


def test_a_prompt_that_is_too_long_for_the_model_is_the_programs_fault(server: LLMServer) -> None:
    error = {"error": {"message": "the request exceeds the available context size, try increasing it"}}
    server.answer = lambda sent: Answered(status=400, error=error)
    asked = [example(f"question {number}", "search_agent") for number in range(30)]
    answers = answer_all(ROUTING, ROUTING.build_program(LABELS), asked, over_http(server))
    assert unread_counts(answers) == {"too_long": 30}
    with pytest.raises(AnswersUnreadable, match=r"24 too long.* -> use a model with a larger context"):
        answer_all(ROUTING, ROUTING.build_program(LABELS), asked, over_http(server), must_be_readable=True)
