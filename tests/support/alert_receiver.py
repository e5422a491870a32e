"""A server on loopback that takes alerts, or has trouble with them."""

import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver:
    """What arrived, and what is answered: an HTTP status, after `silence` seconds."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.silence = 0.0
        self.asked = 0

    @property
    def alerts(self) -> list[dict]:
        return [json.loads(body) for body in self.bodies]

    def told(self) -> list[tuple[str, int]]:
        """Kinds of the alerts that were taken, and how many modules each is about."""
        return [(alert["kind"], alert["affected_total"]) for alert in self.alerts]


@contextmanager
def alert_receiver() -> Generator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.asked += 1
            time.sleep(state.silence)
            if state.status == 200:
                state.bodies.append(body)
                state.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(state.status)
            self.send_header("location", "http://127.0.0.1:9/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    state = Receiver(f"http://127.0.0.1:{server.server_port}/services/T0/B0/hidden")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
