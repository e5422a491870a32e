"""How fast are due tenants launched, and what limits it?

    python bench/launches.py

A real daemon with its code server, and a thousand tenants that are to be retrained at once. Runs are queued and taken
from the queue as always, on SQLite and on Postgres where that is installed, but they are canceled at once, and none
waits for a place among others. Sensors look every second, so that what is measured is not their interval. Runs are made
one after another, and four at once (`sensors.num_submit_workers`). Writes bench/results/launches.json and launches.md;
see bench/README.md.
"""

import argparse
import json
import sqlite3
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import yaml
from fleet import AGENTS, HOUR, make_home, names, own_database, postgres, write_history
from writing import table, write_results

from autoopt_pipeline.devtools.processes import Processes
from autoopt_pipeline.devtools.stack import Stack, start_daemon
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.tenants.store import open_config_store

NOBODY = "http://127.0.0.1:9"
"""Where no Phoenix is. Nobody asks it, for whoever is to be retrained is due whatever is new."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=6, help="per line of the table, at most")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # for the user that Postgres runs as
        with Processes(folder / "logs") as servers, postgres(servers, folder / "postgres") as url:
            for storage, at_once in product(("SQLite", "Postgres") if url else ("SQLite",), (1, 4)):
                home = folder / f"{storage}-{at_once}"
                make_home(home, own_database(url, f"launches_{at_once}") if url and storage == "Postgres" else None)
                let_go(home, arguments.tenants, at_once)
                longest = timedelta(minutes=arguments.minutes)
                found.append({"storage": storage, "at_once": at_once} | launch(home, arguments.tenants, longest))
                print(json.dumps(found[-1]), flush=True)
    write_results("launches", found, table([_line(row) for row in found]))


def let_go(home: Path, tenants: int, at_once: int) -> None:
    path = home / "dagster.yaml"
    document = yaml.safe_load(path.read_text())
    document["run_launcher"] = {"module": "do_nothing", "class": "DoNothing"}
    document["concurrency"]["runs"]["max_concurrent_runs"] = tenants
    del document["concurrency"]["pools"]["default_limit"]
    document["sensors"]["num_submit_workers"] = at_once
    path.write_text(yaml.safe_dump(document))


def launch(home: Path, count: int, longest: timedelta) -> dict[str, Any]:
    tenants, now = names(count), datetime.now(UTC)
    store = home / ".autoopt" / "config.db"
    store.parent.mkdir(exist_ok=True)
    open_config_store(f"sqlite:///{store}").check_writable()
    chosen = {module: {"retrain_after": now.isoformat()} for module in modules()}
    rows = [
        (tenant, 1, now.isoformat(), json.dumps({"tenant_id": tenant, "agents": AGENTS, "modules": chosen}))
        for tenant in tenants
    ]
    with closing(sqlite3.connect(store)) as db, db:
        db.executemany("INSERT INTO tenant_configs VALUES (?, ?, ?, ?)", rows)
    settings = {"AUTOOPT_SENSOR_INTERVAL_SECONDS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    with open_instance(home) as instance, Processes(home / "logs") as processes:
        write_history(instance, tenants, at=now - 2 * HOUR, generations=1, troubled=False)
        start_daemon(processes, Stack(home, NOBODY, settings))
        began = time.monotonic()
        first: float | None = None
        queued = launched = 0
        cpu: dict[str, float] = {}
        while launched < count and time.monotonic() - began < longest.total_seconds():
            time.sleep(1)
            processes.check()
            launched = instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.CANCELED]))
            queued = launched + instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]))
            if queued and first is None:
                first = time.monotonic()
            cpu = used(psutil.Process().children(recursive=True))
        seconds = time.monotonic() - (first or began)
    return {"tenants": count, "queued": queued, "launched": launched, "seconds": seconds, **cpu}


def used(processes: list[psutil.Process]) -> dict[str, float]:
    """CPU seconds of the daemon and of its code servers."""
    spent = {"daemon_cpu": 0.0, "code_server_cpu": 0.0}
    for process in processes:
        try:
            name, command, times = process.name(), " ".join(process.cmdline()), process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        if name != "postgres":
            spent["code_server_cpu" if "grpc" in command else "daemon_cpu"] += times.user + times.system
    return spent


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "storage": row["storage"],
        "made at once": row["at_once"],
        "due tenants": row["tenants"],
        "launched": row["launched"],
        "seconds": round(row["seconds"]),
        "a second": round(row["launched"] / row["seconds"], 2),
        "CPU s of the daemon": round(row["daemon_cpu"]),
        "CPU s of the code server": round(row["code_server_cpu"]),
    }


if __name__ == "__main__":
    main()
