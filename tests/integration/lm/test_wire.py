"""What arrives at an endpoint, in the protocol of each: the settings of the model, and nothing that it refuses."""

import time
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMInvalidRequestError

from autoopt_pipeline.errors import LMNotConfigured, LMUnavailable
from autoopt_pipeline.evaluation.runner import answer_all, using
from autoopt_pipeline.lm.adapters import AnswerAdapter
from autoopt_pipeline.lm.metering import Meter, Role
from autoopt_pipeline.lm.models import MeteredLM, metered_lm, plain_lm
from autoopt_pipeline.lm.probe import enforces_schema
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.modules.answer_format import JSON_SCHEMA, in_format
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.optimization.search import search
from autoopt_pipeline.serving import Serving, language_model
from autoopt_pipeline.tenants.config import LMSettings
from tests.support.labeled_requests import CONFIG, examples, split_of
from tests.support.llm_server import Answered, LLMServer, Sent
from tests.support.sample_decisions import example

ROUTING = get_module("routing")
AGENTS = ("search_agent", "report_agent")
LABELS = tuple(Label(name) for name in AGENTS)

OPENAI = {"temperature": 0.25, "max_tokens": 77, "seed": 9}
"""The usual names in OpenAI's protocol."""


def settings_for(model: str, server: LLMServer, **fields: Any) -> LMSettings:
    host = server.url.removesuffix("/v1")
    own_paths = ("anthropic/", "gemini/", "azure/", "ollama_chat/")
    return LMSettings(
        model=model, api_base=host if model.startswith(own_paths) else server.url, api_key_env="WIRE_API_KEY", **fields
    )


def asked(lm: MeteredLM, server: LLMServer) -> Sent:
    lm.lm("how are you?")
    return server.sent[-1]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIRE_API_KEY", "sk-of-the-wire")
    monkeypatch.setenv("AZURE_API_VERSION", "2024-10-21")


@pytest.mark.parametrize(
    ("model", "path", "carried"),
    [
        ("openai/our-model", "/v1/chat/completions", OPENAI),
        ("groq/llama-3.3-70b", "/v1/chat/completions", OPENAI),
        ("openrouter/meta/llama-3", "/v1/chat/completions", OPENAI),
        ("deepseek/deepseek-chat", "/v1/chat/completions", OPENAI),
        ("hosted_vllm/our-model", "/v1/chat/completions", OPENAI),
        ("ollama_chat/llama3", "/chat/completions", OPENAI),
        ("azure/our-deployment", "/openai/deployments/our-deployment/chat/completions?api-version=2024-10-21", OPENAI),
        ("anthropic/claude-sonnet-4-5", "/messages", {"temperature": 0.25, "max_tokens": 77}),
        ("together_ai/llama", "/v1/chat/completions", OPENAI),
        ("mistral/mistral-small", "/v1/chat/completions", {"temperature": 0.25, "max_tokens": 77, "random_seed": 9}),
    ],
)
def test_each_setting_arrives_as_the_protocol_wants_it(
    server: LLMServer, model: str, path: str, carried: dict[str, Any]
) -> None:
    lm = metered_lm(settings_for(model, server, temperature=0.25, max_tokens=77), Meter(9, 999))
    body = asked(lm, server).body
    assert server.sent[-1].path == path
    given = {name: body.get(name) for name in carried}
    # What is asked at a temperature is asked with another seed each time.
    assert given | {name: 9 for name in given if "seed" in name} == carried
    assert any("sk-of-the-wire" in value for value in server.sent[-1].headers.values())


def test_gemini_has_names_of_its_own(server: LLMServer) -> None:
    lm = metered_lm(settings_for("gemini/gemini-2.5-flash", server, max_tokens=77), Meter(9, 999))
    sent = asked(lm, server)
    assert sent.path == "/models/gemini-2.5-flash:generateContent"
    assert sent.body["generationConfig"] == {"temperature": 0, "maxOutputTokens": 77, "seed": 9}


@pytest.mark.parametrize("role", [Role.ANSWERS, Role.TEACHER])
def test_by_default_answers_are_short_and_not_drawn(server: LLMServer, role: Role) -> None:
    lm = metered_lm(settings_for("openai/our-model", server), Meter(9, 999), role)
    body = asked(lm, server).body
    longest = {Role.ANSWERS: 512, Role.TEACHER: 4096}[role]
    assert {name: body[name] for name in body.keys() - {"messages"}} == {
        "model": "our-model",
        "temperature": 0,
        "max_tokens": longest,
        "seed": 9,
    }


def test_openai_itself_gets_the_name_that_it_wants() -> None:
    lm = metered_lm(LMSettings(model="openai/gpt-4o-mini", api_key_env="WIRE_API_KEY"), Meter(1, 1))
    assert lm.endpoint
    assert lm.endpoint._max_tokens_field is None  # DSPy's client then sends max_completion_tokens


@pytest.mark.parametrize("model", ["openai/o3", "openai/gpt-5-mini", "azure/gpt-5", "openrouter/openai/o4-mini"])
@pytest.mark.parametrize("max_tokens", [None, 900])
def test_reasoning_models_get_no_temperature_and_their_own_name_for_the_length(
    server: LLMServer, model: str, max_tokens: int | None
) -> None:
    lm = metered_lm(settings_for(model, server, max_tokens=max_tokens), Meter(9, 999))
    body = asked(lm, server).body
    assert "temperature" not in body
    assert "max_tokens" not in body or model.startswith("openrouter/")
    if max_tokens:
        assert body.get("max_completion_tokens", body.get("max_tokens")) == 900


def test_a_reasoning_model_behind_another_name_is_found_out(server: LLMServer) -> None:
    server.reasoning_names = {"our-deployment"}
    lm = metered_lm(settings_for("azure/our-deployment", server), Meter(9, 999))
    body = asked(lm, server).body
    lm.lm("and now?")
    assert body.keys() >= {"max_completion_tokens"}
    assert body.keys().isdisjoint({"temperature", "max_tokens"})
    assert lm.meter.calls == 2
    assert server.calls == 2 + 2  # one for each of the two settings that were refused


def test_a_setting_that_somebody_chose_and_the_endpoint_refuses_is_an_error_of_the_configuration(
    server: LLMServer,
) -> None:
    server.reasoning_names = {"our-model"}
    lm = metered_lm(settings_for("openai/our-model", server, temperature=0.3), Meter(9, 999))
    with pytest.raises(LMNotConfigured, match=r"temperature=0.3 is refused: .* -> unset lm.temperature"):
        answer_all(ROUTING, ROUTING.build_program(LABELS), [example("where", "search_agent")], lm)


def test_a_model_of_no_known_provider_is_refused_when_it_is_made() -> None:
    with pytest.raises(LMNotConfigured, match="unknown provider 'nonsense'"):
        metered_lm(LMSettings(model="nonsense/x"), Meter(1, 1))


def test_a_request_that_is_sampled_has_another_seed_each_time_and_the_same_ones_in_every_run(
    server: LLMServer,
) -> None:
    seeds = []
    for _ in range(2):
        lm = metered_lm(settings_for("openai/our-model", server, temperature=0.7), Meter(9, 999))
        seeds.append([asked(lm, server).body["seed"] for _ in range(3)])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3


@pytest.mark.parametrize("wanted", ["chat", "json_schema"])
def test_the_same_question_is_the_same_request_in_search_evaluation_and_serving(
    server: LLMServer, tmp_path: Any, wanted: Any
) -> None:
    server.enforces_schema = True
    question = example("where is the poster", "search_agent")
    program = in_format(ROUTING.build_program(LABELS), wanted)
    lm = metered_lm(settings_for("openai/our-model", server), Meter(99, 9999))
    with using(lm):  # as optimizers do
        program(query=question.query)
    again = metered_lm(settings_for("openai/our-model", server), Meter(99, 9999))
    answer_all(ROUTING, program, [question], again)
    serving = Serving(
        str(tmp_path),
        lm=language_model("openai/our-model", api_base=server.url, api_key_env="WIRE_API_KEY"),
        baseline_format=wanted,
    )
    serving.decide("acme", "routing", agents=list(AGENTS), query=question.query)
    assert len(server.sent) == 3
    assert server.sent[0].raw == server.sent[1].raw == server.sent[2].raw
    assert ("response_format" in server.sent[0].body) == (wanted == "json_schema")


def test_the_teacher_has_settings_of_its_own(server: LLMServer) -> None:
    meter = Meter(3000, 10**9)
    lm = metered_lm(settings_for("openai/answers", server, max_tokens=60), meter)
    teacher = metered_lm(settings_for("openai/teacher", server, max_tokens=700, temperature=1.0), meter, Role.TEACHER)
    split = split_of(ROUTING, train=60, dev=30)
    start = ROUTING.build_program(LABELS)
    search(ROUTING, CONFIG, LABELS, split, start, start, lm, teacher, lambda line: None, PhaseTracker(meter))
    told = {(s.body["model"], s.body.get("max_tokens"), s.body.get("temperature")) for s in server.sent}
    assert ("answers", 60, 0) in told
    assert ("teacher", 700, 1) in told
    assert {longest for model, longest, _ in told if model == "answers"} == {60}
    assert {(longest, heat) for model, longest, heat in told if model == "teacher"} == {(700, 1)}


class TestRetryAfter:
    @pytest.mark.parametrize("model", ["openai/our-model", "together_ai/our-model"])
    def test_is_honoured_as_it_is(self, server: LLMServer, model: str) -> None:
        times: list[float] = []

        def answer(sent: Sent) -> Answered | None:
            times.append(time.monotonic())
            error = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}
            return Answered(status=429, error=error, headers={"retry-after": "2"}) if len(times) == 1 else None

        server.answer = answer
        lm = metered_lm(settings_for(model, server), Meter(9, 999))
        lm.lm("how are you?")
        assert len(times) == 2
        assert times[1] - times[0] >= 2

    def test_of_an_hour_is_an_outage_and_not_waited_for(self, server: LLMServer) -> None:
        error = {"error": {"message": "come back later", "type": "requests", "code": "rate_limit_exceeded"}}
        server.answer = lambda sent: Answered(status=429, error=error, headers={"retry-after": "3600"})
        lm = metered_lm(settings_for("openai/our-model", server), Meter(9, 999))
        with pytest.raises(LMUnavailable, match=r"lower lm\.concurrency"):
            answer_all(ROUTING, ROUTING.build_program(LABELS), [example("where", "search_agent")], lm)
        assert server.calls == 1


class TestOneRequestRefused:
    def flagged(self, status: int, message: str, code: Any = None) -> Any:
        error = {"error": {"message": message, "type": "x", "code": code}}
        return lambda sent: Answered(status=status, error=error) if "flagged" in sent.question else None

    @pytest.mark.parametrize(
        ("status", "message", "reason"),
        [
            (403, "Your chosen model requires moderation and your input was flagged", "refused"),
            (400, "The response was filtered due to the prompt triggering content management policy", "refused"),
            (413, "Request Entity Too Large", "too_long"),
            (400, "This model's maximum context length is 2048 tokens, however you requested 9000", "too_long"),
        ],
    )
    def test_is_a_wrong_answer_of_its_kind(self, server: LLMServer, status: int, message: str, reason: str) -> None:
        server.answer = self.flagged(status, message)
        questions = [*examples(ROUTING, 99), example("flagged for good reason", "search_agent")]
        answers = answer_all(ROUTING, ROUTING.build_program(LABELS), questions, self.lm(server))
        assert [answer.unread for answer in answers if answer.unread] == [reason]
        assert message[:40] in next(answer.detail for answer in answers if answer.unread)

    def test_more_than_two_in_a_hundred_are_an_error(self, server: LLMServer) -> None:
        server.answer = self.flagged(403, "your input was flagged")
        flagged = [example(f"flagged {i}", "search_agent") for i in range(3)]
        with pytest.raises(LMUnavailable, match=r"3 of 100 requests were refused, the last with .*flagged"):
            answer_all(ROUTING, ROUTING.build_program(LABELS), [*examples(ROUTING, 97), *flagged], self.lm(server))

    def test_a_403_for_everything_is_about_the_key(self, server: LLMServer) -> None:
        server.always = 403
        with pytest.raises(LMNotConfigured, match="check the key"):
            answer_all(ROUTING, ROUTING.build_program(LABELS), examples(ROUTING, 99), self.lm(server))
        assert server.calls < 20

    def lm(self, server: LLMServer) -> MeteredLM:
        return metered_lm(settings_for("openai/our-model", server, concurrency=4), Meter(999, 10**9))


def test_whether_an_endpoint_enforces_a_schema_is_found_out_by_asking(server: LLMServer) -> None:
    lm = metered_lm(settings_for("openai/our-model", server), Meter(9, 9999))
    assert not enforces_schema(lm.lm)
    server.enforces_schema = True
    assert enforces_schema(metered_lm(settings_for("openai/our-model", server), Meter(9, 9999)).lm)
    assert server.sent[-1].body["response_format"]["json_schema"]["strict"]
    server.answer = lambda sent: Answered(status=400, error={"error": {"message": "no such thing as response_format"}})
    assert not enforces_schema(metered_lm(settings_for("openai/our-model", server), Meter(9, 9999)).lm)


@pytest.mark.parametrize(
    "model", ["openai/our-model", "anthropic/claude-sonnet-4-5", "gemini/gemini-2.5-flash", "mistral/mistral-small"]
)
def test_the_schema_reaches_every_protocol(server: LLMServer, model: str) -> None:
    server.enforces_schema = True
    lm = metered_lm(settings_for(model, server), Meter(9, 9999))
    program = in_format(ROUTING.build_program(LABELS), JSON_SCHEMA)
    (answer,) = answer_all(ROUTING, program, [example("report on sales", "report_agent")], lm)
    assert answer.values == {"agent": "report_agent"}


def test_an_application_gets_the_refusal_of_a_request_as_an_error_of_dspy(server: LLMServer) -> None:
    server.always = 400
    lm = plain_lm(model="openai/our-model", api_base=server.url)
    with dspy.context(lm=lm, adapter=AnswerAdapter()), pytest.raises(LMInvalidRequestError):
        ROUTING.build_program(LABELS)(query="where is it?")
