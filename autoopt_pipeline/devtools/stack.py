"""Phoenix, Dagster and the dashboard on this machine, for trials, the demo and the tests."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from autoopt_pipeline.devtools.processes import LOOPBACK, Processes
from autoopt_pipeline.errors import InvalidHome, StackFailed

# Folder with the `dagster.yaml`, `workspace.yaml` and settings of a new deployment on one machine.
_INSTANCE = Path(__file__).parents[1] / "instance_template"

_OF_DAGSTER = ("dagster.yaml", "workspace.yaml")
_SETTINGS = "autoopt.env"

_PHOENIX_OF_THE_CHECKOUT = Path(__file__).resolve().parents[2] / ".venv-phoenix" / "bin" / "phoenix"

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
        """Environment for Dagster's processes and for commands that should use the same stack."""
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
    """Start a Phoenix server with its data in `folder`, or in the database `database_url`.

    Returns its endpoint without waiting; see `wait_for_phoenix`.
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
    """Start the Dagster daemon with its own code server."""
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
    """Copy the `dagster.yaml` and `workspace.yaml` of a new instance into a folder."""
    home.mkdir(parents=True, exist_ok=True)
    for name in _OF_DAGSTER:
        shutil.copyfile(_INSTANCE / name, home / name)


def new_home(home: Path) -> list[str]:
    """Make a folder the home of a deployment. Returns the names of the created files.

    Raises `InvalidHome`, without creating anything, if one of them exists or none can be written.
    """
    texts = {name: (_INSTANCE / name).read_text() for name in (*_OF_DAGSTER, _SETTINGS)}
    texts[_SETTINGS] = texts[_SETTINGS].replace("=FOLDER\n", f"={shlex.quote(str(home))}\n")
    if existing := [name for name in texts if (home / name).exists()]:
        raise InvalidHome(f"{home / existing[0]} exists already", "name a new folder, or move what is there away")
    written: list[Path] = []
    try:
        home.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            mode = 0o600 if name == _SETTINGS else 0o644  # it will contain passwords
            with open(home / name, "x", opener=lambda path, flags, mode=mode: os.open(path, flags, mode)) as file:
                written.append(home / name)
                file.write(text)
    except OSError as e:
        for path in written:
            path.unlink(missing_ok=True)
        raise InvalidHome(f"{home} cannot be written: {e.strerror}", "choose a folder that can be written to") from None
    return [*texts]


def require_home(home: Path) -> None:
    """Raise `InvalidHome` unless the folder has an instance that keeps its data there and nowhere else."""
    path = home / "dagster.yaml"
    if not path.exists():
        raise InvalidHome(f"{home} has no dagster.yaml", "make a folder with 'autoopt init FOLDER', and go there")
    try:
        own = yaml.safe_load(path.read_text())["storage"]
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        own = None
    if own != yaml.safe_load((_INSTANCE / "dagster.yaml").read_text())["storage"]:
        raise InvalidHome(
            f"{path} keeps Dagster's data elsewhere, where a second daemon would launch everything twice",
            "go to a folder of its own, as 'autoopt init FOLDER' makes one",
        )


def _phoenix_command() -> str:
    wanted = os.environ.get("AUTOOPT_PHOENIX_COMMAND") or (
        _PHOENIX_OF_THE_CHECKOUT if _PHOENIX_OF_THE_CHECKOUT.exists() else "phoenix"
    )
    path = shutil.which(wanted)
    if not path:
        raise StackFailed(
            f"the Phoenix server is not installed: there is no command {wanted}",
            "pip install 'arize-phoenix>=20.26,<21' into an environment of its own, and set AUTOOPT_PHOENIX_COMMAND to "
            "its bin/phoenix; in a checkout, run 'make install'",
        )
    return str(Path(path).absolute())


def _command(name: str) -> str:
    return str(Path(sys.executable).parent / name)
