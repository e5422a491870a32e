"""A server that speaks the protocols of language models, keeps what it was sent, and refuses what real ones refuse.

It answers with the stand-in, or with whatever a test lays down for it. What a request must look like is taken from the
providers' own documentation: a field that their APIs do not know is a 400, as there.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dspy.lm15 import Message, Request, TextPart

from autoopt_pipeline.lm.stand_in.engine import StandInEngine

_OPENAI_FIELDS = frozenset(
    [
        "model",
        "messages",
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "max_tokens",
        "max_completion_tokens",
        "response_format",
        "tools",
        "tool_choice",
        "logprobs",
        "top_logprobs",
        "presence_penalty",
        "frequency_penalty",
        "reasoning_effort",
        "stream",
        "user",
    ]
)
_MISTRAL_FIELDS = _OPENAI_FIELDS - {"seed"} | {"random_seed"}
_ANTHROPIC_FIELDS = frozenset(
    [
        "model",
        "messages",
        "system",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "stream",
        "output_config",
        "thinking",
    ]
)
_GEMINI_FIELDS = frozenset(
    ["contents", "systemInstruction", "system_instruction", "generationConfig", "safetySettings"]
)
_GEMINI_CONFIG = frozenset(
    [
        "temperature",
        "maxOutputTokens",
        "max_output_tokens",
        "seed",
        "responseMimeType",
        "response_mime_type",
        "responseJsonSchema",
        "response_json_schema",
        "candidateCount",
        "candidate_count",
        "topP",
        "topK",
    ]
)
_REASONS = re.compile(r"(^|/)(o[134]|gpt-5)")


@dataclass(frozen=True)
class Sent:
    """One request as it came over the wire."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def question(self) -> str:
        """The text of the last turn."""
        body = self.body
        if "contents" in body:
            return "".join(part["text"] for part in body["contents"][-1]["parts"])
        return _text(body["messages"][-1])


@dataclass
class LLMServer:
    """`trouble` is a list of what to answer next: HTTP statuses, texts, seconds of silence, or None for the truth.

    `answer` writes an answer to what was sent: a text, with a reason why it ended, or an HTTP status with a body.
    `enforces_schema`: as long as it is false a schema that was asked for is let pass unread, as many servers do.
    `reasoning_names` are models that take neither a temperature nor `max_tokens`, whatever they are called.
    """

    url: str
    sent: list[Sent] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    trouble: list[int | str | float | None] = field(default_factory=list)
    always: int | None = None
    answer: Callable[[Sent], "Answered | None"] = lambda sent: None
    enforces_schema: bool = False
    reasoning_names: set[str] = field(default_factory=set)

    @property
    def calls(self) -> int:
        return len(self.sent)


@dataclass(frozen=True)
class Answered:
    text: str | None = ""
    finish_reason: str = "stop"
    status: int = 200
    error: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    input_tokens: int = 10


@contextmanager
def llm_server(host: str = "127.0.0.1") -> Generator[LLMServer]:
    engine = StandInEngine()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            sent = Sent(self.path, {name.lower(): value for name, value in self.headers.items()}, raw)
            state.sent.append(sent)
            key = next((sent.headers[n] for n in ("authorization", "x-api-key", "api-key") if n in sent.headers), "")
            state.keys.add(key)
            trouble = state.trouble.pop(0) if state.trouble else state.always
            if isinstance(trouble, float):
                time.sleep(trouble)
                trouble = None
            if isinstance(trouble, int):
                self._say(trouble, {"error": {"message": f"trouble with {key}", "type": "x", "code": None}})
                return
            if wrong := _what_is_wrong(sent, state.reasoning_names):
                self._say(400, {"error": {"message": wrong, "type": "invalid_request_error", "code": None}})
                return
            answered = Answered(trouble) if trouble is not None else state.answer(sent)
            if answered is None:
                answered = Answered(_by_schema(sent) if state.enforces_schema and _schema(sent.body) else say(sent))
            if answered.error is not None:
                self._say(answered.status, answered.error, answered.headers)
            else:
                self._say(answered.status, _envelope(sent, answered), answered.headers)

        def _say(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            return

    def say(sent: Sent) -> str:
        """What the stand-in answers, where it can read the prompt."""
        body = sent.body
        if "messages" not in body:
            return "no such protocol here"
        messages = body["messages"]
        system = [_text(m) for m in messages if m["role"] in {"system", "developer"}] + [str(body.get("system", ""))]
        turns = [m for m in messages if m["role"] in {"user", "assistant"}]
        request = Request(
            model="stand-in",
            system="\n".join(system).strip() or "(nothing)",
            messages=tuple(
                (Message.user if m["role"] == "user" else Message.assistant)([TextPart(_text(m))]) for m in turns
            ),
        )
        return engine.complete(request).message.text or ""

    server = ThreadingHTTPServer((host, 0), Handler)
    state = LLMServer(f"http://{host}:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _what_is_wrong(sent: Sent, reasoning_names: set[str]) -> str | None:
    """What a provider would refuse in a request."""
    body = sent.body
    if "generateContent" in sent.path:
        unknown = body.keys() - _GEMINI_FIELDS | body.get("generationConfig", {}).keys() - _GEMINI_CONFIG
        return f"Unknown name {sorted(unknown)}" if unknown else None
    if sent.path.endswith("/messages"):
        if unknown := sorted(body.keys() - _ANTHROPIC_FIELDS):
            return f"{unknown[0]}: Extra inputs are not permitted"
        return None if "max_tokens" in body else "max_tokens: Field required"
    fields = _MISTRAL_FIELDS if body["model"].startswith("mistral") else _OPENAI_FIELDS
    if unknown := sorted(body.keys() - fields):
        return f"Unrecognized request argument supplied: {unknown[0]}"
    if {"max_tokens", "max_completion_tokens"} <= body.keys():
        return "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
    if _REASONS.search(body["model"]) or body["model"] in reasoning_names:
        if "max_tokens" in body and "/" not in body["model"]:  # OpenRouter has one name for all
            return (
                "Unsupported parameter: 'max_tokens' is not supported with this model. "
                "Use 'max_completion_tokens' instead."
            )
        if body.get("temperature", 1) != 1:
            return "Unsupported value: 'temperature' does not support 0 with this model. Only the default is supported."
    return None


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    if "response_format" in body:
        return body["response_format"].get("json_schema", {}).get("schema")
    if "output_config" in body:
        return body["output_config"]["format"]["schema"]
    config = body.get("generationConfig", {})
    return config.get("responseJsonSchema") or config.get("response_json_schema")


def _by_schema(sent: Sent) -> str:
    """An answer that a schema forces: the label that the question names, else the first."""
    question = sent.question.lower()

    def value(kind: dict[str, Any]) -> Any:
        if "enum" in kind:
            named = [label for label in kind["enum"] if label.split("_")[0] in question]
            return (named or kind["enum"])[0]
        if kind["type"] == "array":
            return [value(kind["items"])]
        return 0.75 if kind["type"] == "number" else "because"

    schema = _schema(sent.body) or {}
    return json.dumps({name: value(kind) for name, kind in schema["properties"].items()})


def _envelope(sent: Sent, answered: Answered) -> dict[str, Any]:
    tokens = answered.input_tokens
    if "generateContent" in sent.path:
        reason = {"stop": "STOP", "length": "MAX_TOKENS"}[answered.finish_reason]
        content = {"role": "model", "parts": [{"text": answered.text}]}
        usage = {"promptTokenCount": tokens, "candidatesTokenCount": 5, "totalTokenCount": tokens + 5}
        return {"candidates": [{"content": content, "finishReason": reason, "index": 0}], "usageMetadata": usage}
    if sent.path.endswith("/messages"):
        return {
            "id": "x",
            "type": "message",
            "role": "assistant",
            "model": sent.body["model"],
            "content": [{"type": "text", "text": answered.text}],
            "stop_reason": {"stop": "end_turn", "length": "max_tokens"}[answered.finish_reason],
            "usage": {"input_tokens": tokens, "output_tokens": 5},
        }
    message = {"role": "assistant", "content": answered.text}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": sent.body["model"],
        "service_tier": "default",  # LiteLLM's client of Groq cannot do without
        "choices": [{"index": 0, "finish_reason": answered.finish_reason, "message": message}],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 5, "total_tokens": tokens + 5},
    }


def _text(message: dict) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
