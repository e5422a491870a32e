"""What of Kubernetes' API the run launcher asks: a real HTTP server with Jobs and pods, but none that run."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client import ApiClient


class KubeApi:
    """Jobs that were created, and what is told of them and their pods."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.job_status: dict[str, Any] = {}
        self.pods: list[dict[str, Any]] = []
        self.out_of_order = False

    def get(self, path: str) -> dict[str, Any]:
        """Raises KeyError where there is no such Job."""
        last = path.removesuffix("/status").rpartition("/")[2]
        if last == "pods":
            return {"kind": "PodList", "apiVersion": "v1", "items": self.pods}
        return {**self.jobs[last], "status": self.job_status}

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        self.jobs[job["metadata"]["name"]] = job
        return job


def as_sent(model: Any) -> dict[str, Any]:
    """The JSON that the client sends for one of its objects."""
    return ApiClient().sanitize_for_serialization(model)


def kubeconfig(folder: Path, address: str) -> Path:
    """A configuration file for a server without credentials."""
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": address}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def serve(api: KubeApi) -> Iterator[str]:
    """Serve until the end of the block. Gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                self._answer(api.get(self.path.partition("?")[0]), 500 if api.out_of_order else 200)
            except KeyError:
                self._answer({"kind": "Status", "apiVersion": "v1", "reason": "NotFound"}, 404)

        def do_POST(self) -> None:
            self._answer(api.create(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, document: dict[str, Any], status: int = 200) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
