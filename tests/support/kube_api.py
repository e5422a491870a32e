"""What of Kubernetes' API the run launcher asks: a real HTTP server with Jobs and pods, but none that run."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import create_run_for_test, instance_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from kubernetes.client import ApiClient

RESOURCES = {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}}
LARGE = {"requests": {"memory": "8Gi"}, "limits": {"memory": "16Gi"}}


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
def serve(api: KubeApi) -> Generator[str]:
    """Serve until the end of the block. Gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                self._answer(api.get(self.path.partition("?")[0]), 500 if api.out_of_order else 200)
            except KeyError:
                self._answer({"kind": "Status", "apiVersion": "v1", "reason": "NotFound"}, 404)

        def do_POST(self) -> None:
            self._answer(api.create(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def log_message(self, format: str, *args: object) -> None:
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


@contextmanager
def instance_of_jobs(api: KubeApi, folder: Path) -> Generator[dg.DagsterInstance]:
    """An instance whose runs are Jobs on the server."""
    with serve(api) as address:
        launcher = {
            "module": "autoopt_pipeline.launchers.kubernetes",
            "class": "TenantRunLauncher",
            "config": {
                "service_account_name": "runs",
                "instance_config_map": "instance",
                "job_image": "autoopt:1",
                "load_incluster_config": False,
                "kubeconfig_file": str(kubeconfig(folder, address)),
                "env_secrets": ["keys"],
                "resources": RESOURCES,
                "size_classes": {"large": LARGE},
                "tenant_size_classes": {"org:acme": "large"},
                "only_allow_user_defined_k8s_config_fields": {"container_config": {"resources": True}},
            },
        }
        monitoring = {"enabled": True, "start_timeout_seconds": 600, "max_runtime_seconds": 14400}
        with instance_for_test({"run_launcher": launcher, "run_monitoring": monitoring}) as opened:
            yield opened


def run_of(
    instance: dg.DagsterInstance, tags: dict[str, str], status: dg.DagsterRunStatus | None = None
) -> dg.DagsterRun:
    """A run of assets of the code location, as the webserver makes one."""
    module = "autoopt_pipeline.definitions"
    location = InProcessCodeLocationOrigin(  # ty: ignore[abstract-class-instantiation] - a record's fields implement these
        LoadableTargetOrigin(executable_path="python", module_name=module), location_name="autoopt_pipeline"
    )
    code = RepositoryPythonOrigin(
        "python", ModuleCodePointer(module, "defs", None), container_image="autoopt:2", entry_point=["dagster"]
    )
    return create_run_for_test(
        instance,
        "__ASSET_JOB",
        tags=tags,
        status=status or dg.DagsterRunStatus.NOT_STARTED,
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "__ASSET_JOB"),
        job_code_origin=JobPythonOrigin("__ASSET_JOB", code),
    )


def launched(instance: dg.DagsterInstance, api: KubeApi, tags: dict[str, str]) -> dict[str, Any]:
    """The Job that Kubernetes got for a run with these tags."""
    run = run_of(instance, tags)
    instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
    return api.jobs[f"dagster-run-{run.run_id}"]
