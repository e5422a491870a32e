"""Faults that are real: servers that answer badly, processes that are killed, disks that are full."""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

_HOP_BY_HOP = {"connection", "content-length", "transfer-encoding", "content-encoding", "keep-alive", "date", "server"}


@dataclass(frozen=True)
class Answer:
    """What a server answers."""

    status: int
    headers: dict[str, str]
    body: bytes


Fault = Callable[[Callable[[], Answer]], Answer | None]
"""Gets what asks the real server, and says what its client is told; None hangs up without a word."""


def healthy(ask: Callable[[], Answer]) -> Answer:
    return ask()


def fails(ask: Callable[[], Answer]) -> Answer:
    return Answer(500, {"content-type": "text/plain"}, b"Internal Server Error")


def answers_html(ask: Callable[[], Answer]) -> Answer:
    return Answer(200, {"content-type": "text/html"}, b"<!doctype html><title>Maintenance</title>")


def cuts_short(ask: Callable[[], Answer]) -> Answer:
    answer = ask()
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def answers_nothing(ask: Callable[[], Answer]) -> Answer:
    return replace(ask(), body=b"")


def hangs_up(ask: Callable[[], Answer]) -> None:
    return None


def stores_and_hangs_up(ask: Callable[[], Answer]) -> None:
    ask()


def slow(seconds: float) -> Fault:
    def fault(ask: Callable[[], Answer]) -> Answer:
        time.sleep(seconds)
        return ask()

    return fault


def miscounts(count: int) -> Fault:
    """Phoenix says that every window has so many spans."""

    def fault(ask: Callable[[], Answer]) -> Answer:
        answer = ask()
        return replace(answer, body=re.sub(rb'("recordCount": ?)\d+', rb"\g<1>%d" % count, answer.body))

    return fault


def once(fault: Fault) -> Fault:
    """The fault for one request, and never again."""
    left = iter([fault])

    def sometimes(ask: Callable[[], Answer]) -> Answer | None:
        return next(left, healthy)(ask)

    return sometimes


class Proxy:
    """Stands between clients and a real server, and behaves as it is told."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        self._fault: Fault = healthy
        self._only = ("", "")

    @contextmanager
    def failing(self, fault: Fault, *, method: str = "", path: str = "") -> Generator[None]:
        """Behave so for requests of this method whose path contains `path`; by default for all."""
        self._only, self._fault = (method, path), fault
        try:
            yield
        finally:
            self._only, self._fault = ("", ""), healthy

    def fault_of(self, method: str, path: str) -> Fault:
        wanted, part = self._only
        return self._fault if method.startswith(wanted) and part in path else healthy


@contextmanager
def proxy(target: str) -> Generator[Proxy]:
    """A proxy in front of the server at `target`, an address without a path."""
    state = Proxy(target)
    client = httpx.Client(base_url=target, timeout=60)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}

            def ask() -> Answer:
                try:
                    got = client.request(self.command, self.path, headers=headers, content=body)
                except httpx.HTTPError as e:
                    return Answer(502, {}, str(e).encode())
                dropped = _HOP_BY_HOP - ({"content-length"} if self.command == "HEAD" else set())
                kept = {name: value for name, value in got.headers.items() if name.lower() not in dropped}
                return Answer(got.status_code, kept, got.content)

            answer = state.fault_of(self.command, self.path)(ask)
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else answer.body)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _serve

        def log_message(self, format: str, *args: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            return  # a client that gave up is what some faults are for

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        client.close()


@contextmanager
def own_disk(folder: Path, size: str) -> Generator[bool]:
    """A file system of its own in a folder. False where it cannot be mounted, which needs root."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def read_only(disk: Path) -> Generator[None]:
    """A mounted file system that takes no writes, as after an error of its device."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves no byte free."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"0" * 4096)
            except OSError:
                return ballast
