"""Phoenix and Dagster on this machine, for trying things out, the demo and the tests."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from autoopt_pipeline.errors import StackFailed
from autoopt_pipeline.local.processes import LOOPBACK, Processes

PROJECT = Path(__file__).resolve().parents[2]

_PHOENIX_ENV = {
    "PHOENIX_DISCOVER_CONFIG": "false",
    "PHOENIX_TELEMETRY_ENABLED": "false",
    "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
    "PHOENIX_ENABLE_MCP_SERVER": "false",
    "PHOENIX_ALLOWED_SANDBOX_PROVIDERS": "NONE",
    "DO_NOT_TRACK": "1",
}
_START_SECONDS = 120


@dataclass(frozen=True)
class Stack:
    """A home folder with `dagster.yaml` and `workspace.yaml`, and the address of its Phoenix."""

    home: Path
    phoenix_endpoint: str
    settings: dict[str, str]

    @property
    def env(self) -> dict[str, str]:
        """What Dagster's processes, and commands that are to meet the same stack, need in their environment."""
        return {
            "DAGSTER_HOME": str(self.home),
            "AUTOOPT_HOME": str(self.home / ".autoopt"),
            "PHOENIX_DISCOVER_CONFIG": "false",
            "DAGSTER_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
            "AUTOOPT_PHOENIX_ENDPOINT": self.phoenix_endpoint,
            **self.settings,
        }


def start_phoenix(
    processes: Processes,
    folder: Path,
    port: int,
    grpc_port: int,
    *,
    host: str = LOOPBACK,
    database_url: str | None = None,
) -> str:
    """Start a Phoenix server that keeps its data in `folder`, or in the database `database_url`.

    Returns its endpoint at once; see `wait_for_phoenix`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    env = {
        **_PHOENIX_ENV,
        "PHOENIX_HOST": host,
        "PHOENIX_WORKING_DIR": str(folder),
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc_port),
        "PYTHONWARNINGS": "ignore",
        **({"PHOENIX_SQL_DATABASE_URL": database_url} if database_url else {}),
    }
    processes.start("phoenix", [_phoenix_command(), "serve"], env=env, cwd=folder)
    return f"http://{host}:{port}"


def wait_for_phoenix(processes: Processes, endpoint: str) -> None:
    processes.wait_for_http("phoenix", f"{endpoint}/readyz", seconds=_START_SECONDS)


def start_daemon(processes: Processes, stack: Stack, name: str = "dagster-daemon") -> None:
    """Start the Dagster daemon with a code server of its own."""
    command = [_command("dagster-daemon"), "run", "-w", "workspace.yaml"]
    processes.start(name, command, env=stack.env, cwd=stack.home)


def start_dagster_dev(processes: Processes, stack: Stack, port: int) -> str:
    """Start Dagster's UI and daemon together. Returns the UI's address once it answers."""
    command = [_command("dagster"), "dev", "-w", "workspace.yaml", "-h", LOOPBACK, "-p", str(port)]
    processes.start("dagster", command, env=stack.env, cwd=stack.home)
    processes.wait_for_http("dagster", f"http://{LOOPBACK}:{port}/server_info", seconds=_START_SECONDS)
    return f"http://{LOOPBACK}:{port}"


def start_dashboard(processes: Processes, stack: Stack, port: int) -> str:
    """Start the dashboard. Returns its address once it answers."""
    command = [_command("autoopt"), "dashboard", "--port", str(port)]
    processes.start("dashboard", command, env=stack.env, cwd=stack.home)
    processes.wait_for_http("dashboard", f"http://{LOOPBACK}:{port}/healthz", seconds=_START_SECONDS)
    return f"http://{LOOPBACK}:{port}"


def copy_instance(home: Path) -> None:
    """Give a folder the project's `dagster.yaml` and `workspace.yaml`, so that it is a DAGSTER_HOME of its own."""
    home.mkdir(parents=True, exist_ok=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        source = PROJECT / name
        if not source.exists():
            raise StackFailed(f"{source} is missing", "run this from a checkout of the project")
        if home != PROJECT:
            shutil.copyfile(source, home / name)


def _phoenix_command() -> str:
    beside = PROJECT / ".venv-phoenix" / "bin" / "phoenix"
    command = os.environ.get("AUTOOPT_PHOENIX_COMMAND") or (str(beside) if beside.exists() else shutil.which("phoenix"))
    if not command:
        raise StackFailed(
            "the Phoenix server is not installed",
            "run 'make install' (it gets an environment of its own, .venv-phoenix), or set AUTOOPT_PHOENIX_COMMAND",
        )
    return command


def _command(name: str) -> str:
    return str(Path(sys.executable).parent / name)
