"""A server that speaks OpenAI's chat protocol and answers with the stand-in, or with trouble."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dspy.lm15 import Message, Request, TextPart

from autoopt_pipeline.lm.stand_in import StandInEngine


class LLMServer:
    """`trouble` is a list of what to answer next instead of the truth: HTTP statuses, texts, or seconds of silence."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.calls = 0
        self.keys: set[str] = set()
        self.trouble: list[int | str | float] = []
        self.always: int | None = None


@contextmanager
def llm_server(host: str = "127.0.0.1") -> Iterator[LLMServer]:
    engine = StandInEngine()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.calls += 1
            key = self.headers.get("authorization", "")
            state.keys.add(key)
            trouble = state.trouble.pop(0) if state.trouble else state.always
            if isinstance(trouble, float):
                time.sleep(trouble)
                trouble = None
            if isinstance(trouble, int):
                self._answer(trouble, {"error": {"message": f"trouble with {key}", "type": "x", "code": None}})
                return
            messages = body["messages"]
            system = "\n".join(_text(m) for m in messages if m["role"] in {"system", "developer"})
            turns = [m for m in messages if m["role"] in {"user", "assistant"}]
            request = Request(
                model=body["model"],
                system=system,
                messages=tuple(
                    (Message.user if m["role"] == "user" else Message.assistant)([TextPart(_text(m))]) for m in turns
                ),
            )
            text = trouble if trouble is not None else engine.complete(request).message.text
            self._answer(
                200,
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                    ],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
                },
            )

        def _answer(self, status: int, content: object) -> None:
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer((host, 0), Handler)
    state = LLMServer(f"http://{host}:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _text(message: dict) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
