"""Stands between us and a real language model, passes everything on, and keeps what both sides sent."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


@dataclass(frozen=True)
class Exchange:
    """One request, as it was sent, and the model's answer to it."""

    sent: bytes
    status: int
    answer: dict[str, Any]

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.sent)


@dataclass
class ModelProxy:
    """`address` is where to ask; it stands for the address of the model itself."""

    address: str
    exchanges: list[Exchange] = field(default_factory=list)


@contextmanager
def model_proxy(model: str) -> Generator[ModelProxy]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["content-length"]))
            answer = client.post(self.path, content=sent, headers={"content-type": "application/json"})
            proxy.exchanges.append(Exchange(sent, answer.status_code, answer.json()))
            self.send_response(answer.status_code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: object) -> None:
            return

    with httpx.Client(base_url=model, timeout=300) as client, ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy = ModelProxy(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown()
