"""Phoenix and Dagster with sample tenants, until Ctrl-C. The data stays under .autoopt/ for the next time."""

import time
from datetime import UTC, datetime, timedelta

from rich.console import Console

from autoopt_pipeline.local.processes import Processes, free_port, require_free
from autoopt_pipeline.local.sample_tenants import SAMPLE_TENANTS, sample_config, send_sample_traffic
from autoopt_pipeline.local.stack import (
    PROJECT,
    Stack,
    copy_instance,
    start_dagster_dev,
    start_phoenix,
    wait_for_phoenix,
)
from autoopt_pipeline.orchestration.instance import open_instance
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.phoenix import Phoenix


def run_up(console: Console, *, phoenix_port: int, dagster_port: int) -> None:
    """Start everything, say where it is, and wait. Raises `StackFailed` when a port is taken or a part dies."""
    require_free(phoenix_port, "Phoenix", "PHOENIX_PORT=...")
    require_free(dagster_port, "Dagster", "DAGSTER_PORT=...")
    copy_instance(PROJECT)
    local = PROJECT / ".autoopt"
    with Processes(local / "logs") as processes:
        endpoint = start_phoenix(processes, local / "phoenix", phoenix_port, free_port())
        stack = Stack(
            PROJECT,
            endpoint,
            {
                "AUTOOPT_SENSOR_INTERVAL_SECONDS": "10",
                "AUTOOPT_SETTLING_SECONDS": "5",
                "AUTOOPT_LM": STAND_IN,
            },
        )
        console.print("starting Phoenix and Dagster ...")
        wait_for_phoenix(processes, endpoint)
        dagster_ui = start_dagster_dev(processes, stack, dagster_port)
        console.print(f"Dagster UI  {dagster_ui}\nPhoenix UI  {endpoint}")
        _add_sample_tenants(console, Phoenix(endpoint))
        console.print("answers come from the offline [bold]stand-in[/bold], which is no language model")
        console.print("Ctrl-C stops all of it; the data stays under .autoopt/")
        try:
            while True:
                processes.check()
                time.sleep(1)
        except KeyboardInterrupt:
            console.print("stopping ...")


def _add_sample_tenants(console: Console, phoenix: Phoenix) -> None:
    configs = open_config_store(f"sqlite:///{PROJECT / '.autoopt' / 'config.db'}")
    known = configs.current()
    end = datetime.now(UTC)
    for tenant in SAMPLE_TENANTS:
        if configs.history(tenant.tenant_id):
            continue  # it was added before, and perhaps removed since
        with console.status(f"sending {tenant.traces} traces of {tenant.tenant_id} ({tenant.shows})"):
            send_sample_traffic(phoenix, tenant, tenant.traces, start=end - timedelta(hours=20), end=end, seed=1)
        write_config(configs, sample_config(tenant))
        with open_instance(PROJECT) as instance:
            register_tenant(instance, tenant.tenant_id)
        console.print(f"tenant {tenant.tenant_id}: {tenant.traces} traces ({tenant.shows})")
    if known:
        console.print(f"{len(known)} tenants from earlier")
