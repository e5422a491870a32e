"""What does one look at all tenants cost, and how does that grow?

    python bench/tick.py --tenants 10 100 1000 10000

runs the real sensors on a real Dagster instance, on SQLite and on Postgres where that is installed, with a past of
every tenant and module, and a real Phoenix with a project per tenant. Each is measured in a process of its own; what
stands in the table is its second look. Beside it, the way of the first version: a process per tenant that downloads
the spans to count them. Writes bench/results/tick.json, tick.md and tick.svg; see bench/README.md.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from fleet import (
    HOUR,
    TRACES_BEFORE,
    make_home,
    names,
    own_database,
    postgres,
    write_configs,
    write_history,
    write_traces,
)
from measuring import counted_requests, cpu_of, in_own_process, peak_mb, phoenix_process
from writing import Line, table, write_plot, write_results

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.stack import Stack, start_phoenix, wait_for_phoenix
from autoopt_pipeline.run_history.instance import open_instance

SENSORS = ("auto_optimization_sensor", "tenant_partitions_sensor", "rollout_monitor_sensor", "run_retention_sensor")
STATES = {
    "quiet": "1 % of tenants are due, the others' interval is not over",
    "idle": "all intervals are over, 1 % of tenants have new traces",
    "budget": "as quiet, with a daily budget of all tenants",
}
SEEDS_MODULES = ("modality", "routing", "cross_modal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, nargs="+", default=[10, 100, 1000, 10_000], help="two sizes at least")
    parser.add_argument("--seed-tenants", type=int, nargs="+", default=[10, 100], help="the same, of the first version")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--count", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
    elif arguments.count:
        count_as_the_seed(arguments.count)
    else:
        run(sorted(arguments.tenants), sorted(arguments.seed_tenants))


def run(sizes: list[int], seed_sizes: list[int]) -> None:
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary, Processes(Path(temporary) / "logs") as processes:
        folder = Path(temporary)
        folder.chmod(0o755)  # for the user that Postgres runs as
        endpoint = start_phoenix(processes, folder / "phoenix", free_port(), free_port())
        wait_for_phoenix(processes, endpoint)
        server = phoenix_process(folder / "phoenix")
        tenants, now = names(max(*sizes, *seed_sizes)), datetime.now(UTC)
        outcome = now - 2 * HOUR
        database = f"sqlite:///{folder / 'phoenix' / 'phoenix.db'}"
        write_traces(database, tenants, first=outcome - 20 * HOUR, last=outcome - HOUR, count=TRACES_BEFORE)
        write_traces(database, tenants[::100], first=outcome + timedelta(minutes=1), last=now, count=120)
        with postgres(processes, folder / "postgres") as url:
            for storage in ("SQLite", "Postgres") if url else ("SQLite",):
                for size in sizes:
                    home = folder / f"{storage}-{size}"
                    make_home(home, own_database(url, f"tenants_{size}") if url and storage == "Postgres" else None)
                    with open_instance(home) as instance:
                        write_history(instance, tenants[:size], at=outcome)
                    stack = Stack(home, endpoint, {})
                    (home / ".autoopt").mkdir(exist_ok=True)
                    for state in STATES:
                        store = f"sqlite:///{home / '.autoopt' / 'config.db'}"
                        interval = 3600 if state == "idle" else 7 * 86_400
                        write_configs(store, tenants[:size], interval_seconds=interval, due=tenants[:size:100])
                        for sensor in SENSORS if state == "quiet" else SENSORS[:1]:
                            row = child(sensor, stack, state, server)
                            found.append({"storage": storage, "tenants": size, "state": state, "sensor": sensor} | row)
                            print(json.dumps(found[-1]), flush=True)
        stack = Stack(folder, endpoint, {})
        for size in seed_sizes:
            found.append({"storage": "", "tenants": size, "state": "seed", "sensor": ""} | seed(tenants[:size], stack))
            print(json.dumps(found[-1]), flush=True)
    write_results("tick", found, *tables(found))
    plot(found)


def child(sensor: str, stack: Stack, state: str, server: psutil.Process) -> dict[str, Any]:
    budget = {"AUTOOPT_DAILY_LM_CALLS": str(10**12)} if state == "budget" else {}
    with cpu_of(server) as used:
        found = in_own_process(__file__, "--measure", sensor, env={**stack.env, **budget}, folder=stack.home)
    return found | {"phoenix_cpu": used[0] / 2}  # it ticks twice


def measure(sensor: str) -> dict[str, Any]:
    """Two looks of a sensor in this process, and what the second one took."""
    from autoopt_pipeline.definitions import defs
    from autoopt_pipeline.orchestration.resources import Services

    definition, cursor, looks = defs.resolve_sensor_def(sensor), None, []
    with open_instance(Path(os.environ["DAGSTER_HOME"])) as instance, counted_requests() as requests:
        for _ in range(2):
            requests.update(requests=0, sent=0, received=0)
            context = dg.build_sensor_context(
                instance=instance,
                instance_ref=instance.get_ref(),
                definitions=defs,
                sensor_name=sensor,
                resources={"services": Services()},
                cursor=cursor,
            )
            began, spent = time.monotonic(), time.process_time()
            result = definition.evaluate_tick(context)
            looks.append({"wall": time.monotonic() - began, "cpu": time.process_time() - spent, **requests})
            cursor = context.cursor
    report = json.loads(cursor) if cursor and cursor.startswith("{") else {}
    return looks[1] | {
        "first_cpu": looks[0]["cpu"],
        "memory_mb": peak_mb(),
        "launched": len(result.run_requests or ()),
        "decisions": report.get("decisions", {}),
    }


def seed(tenants: list[str], stack: Stack) -> dict[str, Any]:
    """The first version's way: for each tenant a process, which downloads its spans once for each of three modules."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    for tenant in tenants:
        subprocess.run(  # noqa: S603
            [sys.executable, __file__, "--count", tenant],
            env={**os.environ, **stack.env},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall": time.monotonic() - began,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "requests": len(SEEDS_MODULES) * len(tenants),
    }


def count_as_the_seed(tenant: str) -> None:
    from phoenix.client import Client

    from autoopt_pipeline.span_contract import project_name

    for module in SEEDS_MODULES:
        frame = Client(base_url=os.environ["AUTOOPT_PHOENIX_ENDPOINT"]).spans.get_spans_dataframe(
            project_identifier=project_name(tenant), start_time=datetime.now(UTC) - 24 * HOUR, limit=1000, timeout=60
        )
        print(module, len(frame))


def tables(found: list[dict[str, Any]]) -> Iterator[str]:
    yield table([_of_a_look(row) for row in found if row["sensor"] == SENSORS[0]])
    yield table([_of_a_sensor(row) for row in found if row["sensor"] in SENSORS[1:]])
    yield table([_of_the_seed(row) for row in seeds(found)])
    per_tenant = seeds(found)[-1]["cpu"] / seeds(found)[-1]["tenants"]
    for storage in dict.fromkeys(row["storage"] for row in found if row["storage"]):
        own = ours(found, storage, "quiet")
        smaller, largest = own[-2:]
        exponent = math.log(largest["cpu"] / smaller["cpu"]) / math.log(largest["tenants"] / smaller["tenants"])
        ratio = per_tenant / (largest["cpu"] / largest["tenants"])
        yield (
            f"{storage}: from {smaller['tenants']:,} to {largest['tenants']:,} tenants CPU grows with the power "
            f"{exponent:.2f}; {ratio:,.0f} times less per tenant."
        )


def _of_a_look(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "tenants x 5": row["tenants"],
        "storage": row["storage"],
        "state": row["state"],
        "CPU s": round(row["cpu"], 2),
        "wall s": round(row["wall"], 1),
        "requests": row["requests"],
        "KB": round((row["sent"] + row["received"]) / 1000),
        "Phoenix CPU s": round(row["phoenix_cpu"], 1),
        "MB": round(row["memory_mb"]),
        "runs": row["launched"],
        "deferred": row["decisions"].get("deferred", 0) // 5,
    }


def _of_a_sensor(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "sensor": row["sensor"],
        "tenants": row["tenants"],
        "storage": row["storage"],
        "CPU s": round(row["cpu"], 2),
        "wall s": round(row["wall"], 1),
    }


def _of_the_seed(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "a process per tenant": row["tenants"],
        "CPU s": round(row["cpu"]),
        "wall s": round(row["wall"]),
        "CPU s per tenant": round(row["cpu"] / row["tenants"], 2),
    }


def seeds(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in found if row["state"] == "seed"]


def ours(found: list[dict[str, Any]], storage: str, state: str) -> list[dict[str, Any]]:
    return [row for row in found if row["storage"] == storage and row["state"] == state and row["sensor"] == SENSORS[0]]


def plot(found: list[dict[str, Any]]) -> None:
    lines = [
        Line(f"{storage}, {state}", [(row["tenants"], row["cpu"]) for row in ours(found, storage, state)])
        for storage in dict.fromkeys(row["storage"] for row in found if row["storage"])
        for state in ("quiet", "idle")
    ]
    measured = [(row["tenants"], row["cpu"]) for row in seeds(found)]
    largest, (tenants, cpu) = max(row["tenants"] for row in found), measured[-1]
    extrapolated = [*measured, (largest, cpu / tenants * largest)]
    lines.append(Line("a process per tenant, extrapolated", extrapolated, guessed=True))
    write_plot("tick", lines, x="tenants", y="CPU seconds of one look", limit=60)


if __name__ == "__main__":
    main()
