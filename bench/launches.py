"""How fast are due tenants launched, and what limits it?

    python bench/launches.py

A real daemon with its code server, and a thousand tenants that are to be retrained at once. Runs are queued and taken
from the queue as always, on SQLite and on Postgres where that is installed, but they are canceled at once, and none
waits for a place among others. Sensors look every second, so that what is measured is not their interval. The other
lines differ from what is shipped by what they name. The last one starts a process for each of some runs, as on one
machine, and counts those that have begun to work. Writes bench/results/launches.json and launches.md; see
bench/README.md.
"""

import argparse
import json
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import yaml
from fleet import AGENTS, HOUR, make_home, names, own_database, postgres, write_documents, write_history
from writing import table, write_results

from autoopt_pipeline.devtools.processes import Processes
from autoopt_pipeline.devtools.stack import Stack, start_daemon
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.run_history.instance import open_instance

NOBODY = "http://127.0.0.1:9"
"""Where no Phoenix is. Nobody asks it before a run, for whoever is to be retrained is due whatever is new."""

_LAUNCHED = [dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE]


@dataclass(frozen=True)
class Way:
    """What is launched from where. `launch_seconds` is how long a launcher takes; None starts processes, as shipped."""

    storage: str
    name: str
    launch_seconds: float | None = 0
    dagsters_own: bool = False
    dequeuing_threads: bool = True


WAYS = (
    Way("SQLite", "as shipped"),
    Way("Postgres", "Dagster's own storage", dagsters_own=True),
    Way("Postgres", "as shipped"),
    Way("Postgres", "a launch takes 0.1 s, one after another", launch_seconds=0.1, dequeuing_threads=False),
    Way("Postgres", "a launch takes 0.1 s", launch_seconds=0.1),
    Way("Postgres", "a process for each run", launch_seconds=None),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=8, help="runs that are started as processes")
    parser.add_argument("--minutes", type=float, default=6, help="per line of the table, at most")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # for the user that Postgres runs as
        with Processes(folder / "logs") as servers, postgres(servers, folder / "postgres") as url:
            for number, way in enumerate(WAYS):
                if way.storage == "Postgres" and not url:
                    continue
                database = own_database(url, f"launches_{number}") if url and way.storage == "Postgres" else None
                home = folder / f"home-{number}"
                make_home(home, database)
                configure(home, way)
                tenants = arguments.processes if way.launch_seconds is None else arguments.tenants
                longest = timedelta(minutes=arguments.minutes)
                row = {"storage": way.storage, "way": way.name, **launch(home, tenants, longest)}
                found.append(row | {"connections": connections(database) if database else None})
                print(json.dumps(found[-1]), flush=True)
    write_results("launches", found, table([_line(row) for row in found]))


def configure(home: Path, way: Way) -> None:
    path = home / "dagster.yaml"
    document = yaml.safe_load(path.read_text())
    if way.launch_seconds is not None:
        config = {"seconds": float(way.launch_seconds)}
        document["run_launcher"] = {"module": "do_nothing", "class": "DoNothing", "config": config}
    if way.dagsters_own:
        document["storage"] = {"postgres": document["storage"]["custom"]["config"]}
    document["concurrency"]["runs"]["max_concurrent_runs"] = -1
    del document["concurrency"]["pools"]["default_limit"]
    document["run_coordinator"]["config"]["dequeue_use_threads"] = way.dequeuing_threads
    path.write_text(yaml.safe_dump(document))


def launch(home: Path, count: int, longest: timedelta) -> dict[str, Any]:
    tenants, now = names(count), datetime.now(UTC)
    chosen = {module: {"retrain_after": now.isoformat()} for module in modules()}
    documents = {tenant: {"tenant_id": tenant, "agents": AGENTS, "modules": chosen} for tenant in tenants}
    write_documents(f"sqlite:///{home / '.autoopt' / 'config.db'}", documents)
    settings = {"AUTOOPT_SENSOR_INTERVAL_SECONDS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    with open_instance(home) as instance, Processes(home / "logs") as processes:
        write_history(instance, tenants, at=now - 2 * HOUR, generations=1, troubled=False)
        start_daemon(processes, Stack(home, NOBODY, settings))
        began = time.monotonic()
        first: float | None = None
        launched = 0
        cpu: dict[str, float] = {}
        while launched < count and time.monotonic() - began < longest.total_seconds():
            time.sleep(1)
            processes.check()
            launched = instance.get_runs_count(dg.RunsFilter(statuses=_LAUNCHED))
            waiting = instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]))
            if launched + waiting and first is None:
                first = time.monotonic()
            cpu = used(psutil.Process().children(recursive=True))
        seconds = time.monotonic() - (first or began)
    return {"tenants": count, "launched": launched, "seconds": seconds, **cpu}


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


def connections(url: str) -> int:
    """How many connections a database has had."""
    import psycopg2

    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")
        row = cursor.fetchone()
        return row[0] if row else 0


def _line(row: dict[str, Any]) -> dict[str, Any]:
    of_each = None if row["connections"] is None else round(row["connections"] / max(row["launched"], 1), 1)
    return {
        "storage": row["storage"],
        "way": row["way"],
        "due tenants": row["tenants"],
        "launched": row["launched"],
        "seconds": round(row["seconds"]),
        "a second": round(row["launched"] / row["seconds"], 2),
        "connections a run": "" if of_each is None else of_each,
        "CPU s of the daemon": round(row["daemon_cpu"]),
        "CPU s of the code server": round(row["code_server_cpu"]),
    }


if __name__ == "__main__":
    main()
