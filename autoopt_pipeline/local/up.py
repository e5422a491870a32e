"""Phoenix, Dagster and the dashboard with sample tenants, until Ctrl-C. Data stays under .autoopt/ for next time."""

import fcntl
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from autoopt_pipeline.errors import StackFailed
from autoopt_pipeline.local.processes import Processes, free_port, require_free
from autoopt_pipeline.local.sample_tenants import SAMPLE_TENANTS, sample_config, send_sample_traffic
from autoopt_pipeline.local.stack import (
    PROJECT,
    Stack,
    copy_instance,
    start_dagster_dev,
    start_dashboard,
    start_phoenix,
    wait_for_phoenix,
)
from autoopt_pipeline.orchestration.instance import open_instance
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.settings import STAND_IN, load_settings
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.phoenix import Phoenix


def run_up(console: Console, *, phoenix_port: int, dagster_port: int, dashboard_port: int) -> None:
    """Start everything, say where it is, and wait. Raises `StackFailed` when a port is taken or a part dies."""
    if len({phoenix_port, dagster_port, dashboard_port}) < 3:
        raise StackFailed(
            f"two of the ports {phoenix_port}, {dagster_port} and {dashboard_port} are the same",
            "choose three with PHOENIX_PORT=..., DAGSTER_PORT=... and DASHBOARD_PORT=...",
        )
    require_free(phoenix_port, "Phoenix", "PHOENIX_PORT=...")
    require_free(dagster_port, "Dagster", "DAGSTER_PORT=...")
    require_free(dashboard_port, "the dashboard", "DASHBOARD_PORT=...")
    copy_instance(PROJECT)
    local = PROJECT / ".autoopt"
    modules = load_settings().modules
    with _alone(local), Processes(local / "logs") as processes:
        endpoint = start_phoenix(processes, local / "phoenix", phoenix_port, free_port())
        stack = Stack(
            PROJECT,
            endpoint,
            {
                "AUTOOPT_SENSOR_INTERVAL_SECONDS": "10",
                "AUTOOPT_SETTLING_SECONDS": "5",
                "AUTOOPT_LM": STAND_IN,
                **({"AUTOOPT_MODULES": str(modules.absolute())} if modules else {}),
            },
        )
        console.print("starting Phoenix, Dagster and the dashboard ...")
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
            console.print(f"  export {name}={stack.env[name]}", soft_wrap=True)
        _add_sample_tenants(console, Phoenix(endpoint))
        console.print("answers come from the offline [bold]stand-in[/bold], which is no language model")
        console.print("Ctrl-C stops all of it; the data stays under .autoopt/")
        try:
            while True:
                processes.check()
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("stopping ...")


@contextmanager
def _alone(local: Path) -> Generator[None, None, None]:
    """Two daemons on one instance would launch everything twice."""
    local.mkdir(exist_ok=True)
    with (local / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StackFailed(f"a stack of {local.parent} runs already", "stop it, or use a second checkout") from None
        yield


def _add_sample_tenants(console: Console, phoenix: Phoenix) -> None:
    configs = open_config_store(f"sqlite:///{PROJECT / '.autoopt' / 'config.db'}")
    known = configs.current()
    end = datetime.now(UTC)
    for tenant in SAMPLE_TENANTS:
        if configs.history(tenant.tenant_id):
            continue  # it was added before, and perhaps removed since
        with console.status(f"sending {tenant.traces} traces of {tenant.tenant_id} ({tenant.shows})"):
            send_sample_traffic(phoenix, tenant, tenant.traces, start=end - timedelta(hours=20), end=end, seed=1)
        write_config(configs, sample_config(tenant), by="autoopt up")
        with open_instance(PROJECT) as instance:
            register_tenant(instance, tenant.tenant_id)
        console.print(f"tenant {tenant.tenant_id}: {tenant.traces} traces ({tenant.shows})")
    if known:
        console.print(f"{len(known)} tenants from earlier")
