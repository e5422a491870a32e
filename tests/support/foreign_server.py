"""A server that answers everything with the same words, as one does that is not Phoenix, or is too old."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

PROJECT = {"id": "UHJvamVjdDox", "name": "default", "description": ""}


@dataclass
class Server:
    """Answers every request alike, but for the list of projects, and notes what was asked."""

    url: str
    asked: list[str] = field(default_factory=list)


@contextmanager
def answering(body: bytes, *, version: str | None = None, status: int = 200, port: int = 0) -> Generator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, text: bytes) -> None:
            served.asked.append(f"{self.command} {self.path.partition('?')[0]}")
            self.send_response(status)
            if version:
                self.send_header("x-phoenix-server-version", version)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self._answer(json.dumps({"data": [PROJECT], "next_cursor": None}).encode() if version else body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._answer(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", port), Handler)
    served = Server(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield served
    server.shutdown()
    server.server_close()


# As Phoenix 15.12.0 answered what it does not know.
MASKED = b'{"data": null, "errors": [{"message": "an unexpected error occurred", "locations": [{"line": 1}]}]}'
