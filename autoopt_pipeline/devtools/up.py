"""Runs Phoenix, Dagster and the dashboard with sample tenants until Ctrl-C. Data stays in .autoopt/ for next time."""

import fcntl
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from autoopt_pipeline.devtools.processes import Processes, free_port, require_free
from autoopt_pipeline.devtools.sample_tenants import REAL_MODEL_TENANT, configured_samples, send_sample_traffic
from autoopt_pipeline.devtools.smollm2 import NAME, smollm2_settings, start_smollm2, who_answers
from autoopt_pipeline.devtools.stack import (
    Stack,
    require_home,
    start_dagster_dev,
    start_dashboard,
    start_phoenix,
    wait_for_phoenix,
)
from autoopt_pipeline.errors import StackFailed
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.settings import STAND_IN, load_settings
from autoopt_pipeline.tenants.config import LMSettings
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix


def run_up(
    console: Console,
    home: Path,
    *,
    phoenix_port: int,
    dagster_port: int,
    dashboard_port: int,
    smollm2_port: int | None = None,
) -> None:
    """Start everything in a folder that has an instance, print the addresses, and wait.

    With `smollm2_port` there is one more tenant, whose answers come from that model. Raises `InvalidHome` for a folder
    without an instance, and `StackFailed` if a port is taken or a part dies.
    """
    ports = {
        "phoenix": ("Phoenix", phoenix_port),
        "dagster": ("Dagster", dagster_port),
        "dashboard": ("the dashboard", dashboard_port),
    }
    if smollm2_port:
        ports["lm"] = ("the language model", smollm2_port)
    if len({port for _, port in ports.values()}) < len(ports):
        *others, last = ports
        raise StackFailed(
            f"two of the ports {', '.join(str(port) for _, port in ports.values())} are the same",
            f"choose them with {', '.join(f'--{name}-port' for name in others)} and --{last}-port "
            "(make up PHOENIX_PORT=...)",
        )
    require_home(home)
    for name, (server, port) in ports.items():
        require_free(port, server, f"--{name}-port (make up {name.upper()}_PORT=...)")
    local = home / ".autoopt"
    settings = load_settings()
    folders = {"AUTOOPT_MODULES_FILE": settings.modules_file, "AUTOOPT_ENCODER": settings.encoder}
    with _alone(local), Processes(local / "logs") as processes:
        endpoint = start_phoenix(processes, local / "phoenix", phoenix_port, free_port())
        stack = Stack(
            home,
            endpoint,
            {
                "AUTOOPT_SENSOR_INTERVAL_SECONDS": "10",
                "AUTOOPT_SETTLING_SECONDS": "5",
                "AUTOOPT_LM": STAND_IN,
                **{name: str(path.absolute()) for name, path in folders.items() if path},
            },
        )
        console.print("starting Phoenix, Dagster and the dashboard ...")
        lm = smollm2_settings(start_smollm2(processes, local / "smollm2", smollm2_port)) if smollm2_port else None
        wait_for_phoenix(processes, endpoint)
        dagster_ui = start_dagster_dev(processes, stack, dagster_port)
        stack.settings["AUTOOPT_DAGSTER_UI_URL"] = dagster_ui
        dashboard = start_dashboard(processes, stack, dashboard_port)
        console.print(f"dashboard   {dashboard}\nDagster UI  {dagster_ui}\nPhoenix UI  {endpoint}")
        console.print("in another shell, so that commands meet this stack:")
        for name in (
            "DAGSTER_HOME",
            "AUTOOPT_PHOENIX_ENDPOINT",
            "AUTOOPT_SETTLING_SECONDS",
            "AUTOOPT_DAGSTER_UI_URL",
        ):
            console.print(f"  export {name}={stack.env[name]}")
        _add_sample_tenants(console, home, Phoenix(endpoint), lm)
        console.print(who_answers(lm))
        try:
            console.print("Ctrl-C stops all of it; the data stays under .autoopt/")
            while True:
                processes.check()
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("stopping ...")


@contextmanager
def _alone(local: Path) -> Generator[None, None, None]:
    """Lock the folder, because two daemons on one instance would launch everything twice."""
    local.mkdir(exist_ok=True)
    with (local / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StackFailed(f"a stack of {local.parent} runs already", "stop it, or use another folder") from None
        yield


def _add_sample_tenants(console: Console, home: Path, phoenix: Phoenix, lm: LMSettings | None) -> None:
    configs = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")
    known = configs.current()
    end = datetime.now(UTC)
    for tenant, config in configured_samples(lm):
        if configs.history(tenant.tenant_id):
            continue  # it was added before, and may have been removed since
        with console.status(f"sending {tenant.traces} traces of {tenant.tenant_id} ({tenant.shows})"):
            send_sample_traffic(phoenix, tenant, tenant.traces, start=end - timedelta(hours=20), end=end, seed=1)
        write_config(configs, config, actor="autoopt up")
        with open_instance(home) as instance:
            register_tenant(instance, tenant.tenant_id)
        console.print(f"tenant {tenant.tenant_id}: {tenant.traces} traces ({tenant.shows})")
    if known:
        console.print(f"{len(known)} tenants from earlier")
    if REAL_MODEL_TENANT.tenant_id in known and lm is None:
        console.print(f"{REAL_MODEL_TENANT.tenant_id} asks {NAME}, which is not here: 'make up LM={NAME}' starts it")
