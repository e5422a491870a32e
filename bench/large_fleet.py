"""What does a tick cost that remembers the earlier ones, and whom does it ask Phoenix about?

    python bench/large_fleet.py --tenants 1000 10000 100000

runs the real sensor on a real Dagster instance on SQLite and a real Phoenix, in a process of its own for each line.
*anew* decides about every tenant in every tick, as fleets of up to 200 tenants still do; *remembered* is what larger
ones do. *Quiet*: 1 % of the tenants are due. *Idle*: all intervals are over, and 1 % get new traces before the last
tick, of which their application tells as the serving library does. Writes bench/results/large_fleet.json and .md.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
from fleet import HOUR, make_home, names, write_configs, write_history, write_traces
from measuring import counted_requests, cpu_of, in_own_process, peak_mb, phoenix_process
from writing import table, write_results

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.stack import Stack, start_phoenix, wait_for_phoenix
from autoopt_pipeline.run_history.instance import open_instance

SENSOR = "auto_optimization_sensor"
NEW_TRACES = 120
_MOST_TICKS = 30
"""A busy machine has no time to ask about everybody."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--idle-tenants", type=int, default=10_000)
    parser.add_argument("--measure", choices=["quiet", "idle"], help=argparse.SUPPRESS)
    parser.add_argument("--of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--anew", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--database", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, names(arguments.of), arguments.database, anew=arguments.anew)))
    else:
        run(sorted(arguments.tenants), arguments.idle_tenants)


def run(sizes: list[int], idle: int) -> None:
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary, Processes(Path(temporary) / "logs") as processes:
        folder = Path(temporary)
        endpoint = start_phoenix(processes, folder / "phoenix", free_port(), free_port())
        wait_for_phoenix(processes, endpoint)
        server = phoenix_process(folder / "phoenix")
        outcome = datetime.now(UTC) - 2 * HOUR
        database = f"sqlite:///{folder / 'phoenix' / 'phoenix.db'}"
        tenants = names(max([*sizes, idle]))
        some = sorted({*names(idle), *tenants[::100]})
        write_traces(database, some, first=outcome - 20 * HOUR, last=outcome - HOUR, count=2)
        for size in sorted({*sizes, idle}):
            home = folder / f"home-{size}"
            make_home(home)
            with open_instance(home) as instance:
                write_history(instance, tenants[:size], at=outcome, generations=1)
            (home / ".autoopt").mkdir(exist_ok=True)
        lines = [("idle", idle, "remembered"), ("idle", idle, "anew")]
        lines += [("quiet", size, way) for size in sizes for way in ("anew", "remembered")]
        for state, size, way in lines:
            if state == "quiet" and size == sizes[0] and way == "anew":
                rest = [tenant for tenant in tenants[::100] if tenant not in names(idle)]
                write_new_traces(database, rest)
            stack = Stack(folder / f"home-{size}", endpoint, {"AUTOOPT_SETTLING_SECONDS": "0"})
            store = f"sqlite:///{stack.home / '.autoopt' / 'config.db'}"
            interval = 3600 if state == "idle" else 7 * 86_400
            write_configs(store, tenants[:size], interval_seconds=interval, due=tenants[:size:100])
            flags = ["--measure", state, "--of", str(size), "--database", database]
            flags += ["--anew"] if way == "anew" else []
            with cpu_of(server) as used:
                row = in_own_process(__file__, *flags, env=stack.env, folder=stack.home)
            row["phoenix_cpu"] = used[0] / row["ticks"]
            found.append({"tenants": size, "state": state, "way": way} | row)
            print(json.dumps(found[-1]), flush=True)
    write_results("large_fleet", found, *tables(found))


def write_new_traces(database: str, tenants: Sequence[str]) -> None:
    now = datetime.now(UTC)
    write_traces(database, tenants, first=now - HOUR, last=now, count=NEW_TRACES)


def measure(state: str, tenants: Sequence[str], database: str, *, anew: bool) -> dict[str, Any]:
    """Tick until Phoenix was asked about everybody, and once more: what that last tick took, and the most of any."""
    from autoopt_pipeline.definitions import defs
    from autoopt_pipeline.orchestration import planner
    from autoopt_pipeline.orchestration.sensors import optimization

    if anew:
        vars(optimization)["_FEW_TENANTS"] = vars(planner)["_DECIDED_AT_ONCE"] = sys.maxsize
    asked: list[str] = []
    gather = planner.gather_evidence

    def gathering(phoenix: Any, wanted: Sequence[Any], *, until: datetime) -> Any:
        asked.extend({each.tenant_id for each in wanted})
        return gather(phoenix, wanted, until=until)

    vars(planner)["gather_evidence"] = gathering
    definition, cursor, ticks = defs.resolve_sensor_def(SENSOR), None, list[dict[str, Any]]()
    hears = state == "idle" and not anew
    with open_instance(Path(os.environ["DAGSTER_HOME"])) as instance, counted_requests() as requests:
        while True:
            last = len(ticks) == 1 if anew else bool(ticks) and (not ticks[-1]["deferred"] or len(ticks) == _MOST_TICKS)
            if hears and last:
                write_new_traces(database, tenants[::100])
                tell(dict.fromkeys(tenants[::100], NEW_TRACES))
            elif hears:
                tell(dict.fromkeys(tenants, 1))
            ticks.append(tick(definition, defs, instance, cursor, requests, asked))
            cursor = ticks[-1].pop("cursor")
            if last:
                break
    return ticks[-1] | {
        "ticks": len(ticks),
        "most_cpu": max(each["cpu"] for each in ticks),
        "memory_mb": peak_mb(),
    }


def tick(
    definition: dg.SensorDefinition,
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    cursor: str | None,
    requests: dict[str, int],
    asked: list[str],
) -> dict[str, Any]:
    from autoopt_pipeline.orchestration.resources import Services

    requests.update(requests=0, sent=0, received=0)
    asked.clear()
    context = dg.build_sensor_context(
        instance=instance,
        instance_ref=instance.get_ref(),
        definitions=defs,
        sensor_name=SENSOR,
        resources={"services": Services()},
        cursor=cursor,
    )
    began, spent = time.monotonic(), time.process_time()
    definition.evaluate_tick(context)
    decisions = json.loads(context.cursor or "{}")["decisions"]
    return {
        "cpu": time.process_time() - spent,
        "wall": time.monotonic() - began,
        "requests": requests["requests"],
        "asked": len(asked),
        "deferred": decisions.get("deferred", 0) // 5,
        "due": decisions.get("due", 0) // 5,
        "cursor": context.cursor,
    }


def tell(decisions: dict[str, int]) -> None:
    """Tell Phoenix of so many decisions of each tenant, as an application does, and wait until it knows."""
    from collections import Counter

    from autoopt_pipeline.otlp import phoenix_exporter
    from autoopt_pipeline.serving._counts import DecisionCounts
    from autoopt_pipeline.span_contract import COUNTS_PROJECT, COUNTS_SPAN, ROUTING_SPAN
    from autoopt_pipeline.traces.client import CountRequest, Phoenix

    endpoint = os.environ["AUTOOPT_PHOENIX_ENDPOINT"]
    began, spans = datetime.now(UTC), list[Any]()
    counts = DecisionCounts(spans.append)
    counts._counts = {tenant: Counter({ROUTING_SPAN: count}) for tenant, count in decisions.items()}
    counts.flush()
    phoenix_exporter(endpoint, None, timeout_seconds=30).export(spans)
    phoenix = Phoenix(endpoint)
    while True:
        if project := phoenix.project(COUNTS_PROJECT):
            request = CountRequest(project.id, COUNTS_SPAN, began - timedelta(seconds=1), datetime.now(UTC))
            if phoenix.count([request])[request] >= len(spans):
                break
        time.sleep(0.2)
    time.sleep(1)  # the tick's window ends at a whole second


def tables(found: list[dict[str, Any]]) -> Iterator[str]:
    yield table(
        [
            {
                "tenants x 5": row["tenants"],
                "state": row["state"],
                "tick": row["way"],
                "CPU s": round(row["cpu"], 2),
                "wall s": round(row["wall"], 1),
                "peak MB": round(row["memory_mb"]),
                "asked about": row["asked"],
                "deferred": row["deferred"],
                "due": row["due"],
                "Phoenix CPU s": round(row["phoenix_cpu"], 1),
                "ticks until then": row["ticks"] - 1,
                "most CPU s of these": round(row["most_cpu"], 1),
            }
            for row in found
        ]
    )


if __name__ == "__main__":
    main()
