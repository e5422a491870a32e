"""How long does a backtest take, from a Phoenix that has the traces?

    python bench/backtest.py --traces 1000 --days 30
    python bench/backtest.py --traces 10000 --days 30 --nights 30 --reviewed 1 --max-calls 1000000

starts a Phoenix of its own, sends it simulated traffic of a tenant, spread over the days, and gives each review the
time at which a person might have made it: within a day after its trace. Then it runs `autoopt backtest` for the module
routing with the stand-in, and prints its seconds by the clock and of CPU; see bench/README.md.
"""

import argparse
import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.stack import start_phoenix, wait_for_phoenix
from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, TrafficProfile, sample_truths_for, simulate_requests
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.tenants.config import Agent, RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix

TENANT = "bench"
BATCH = 1000
"""Requests that are sent before they have to be stored."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=1000)
    parser.add_argument("--days", type=int, default=30, help="days over which the traces are spread")
    parser.add_argument("--nights", type=int, default=90, help="nights that are played")
    parser.add_argument("--reviewed", type=float, default=0.3)
    parser.add_argument("--max-calls", type=int)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, Processes(Path(temporary) / "logs") as processes:
        folder = Path(temporary)
        endpoint = start_phoenix(processes, folder / "phoenix", free_port(), free_port())
        wait_for_phoenix(processes, endpoint)
        config = RoutingConfigUnified(tenant_id=TENANT, agents=[Agent(name=name) for name in SAMPLE_AGENTS])
        home = folder / "home"
        home.mkdir()
        write_config(open_config_store(f"sqlite:///{home / 'config.db'}"), config)
        send(Phoenix(endpoint), arguments.traces, arguments.days, arguments.reviewed)
        date_reviews(folder / "phoenix" / "phoenix.db")
        used, document = run(home, endpoint, arguments.nights, arguments.max_calls)
    (backtest,) = document["backtests"]
    nights = backtest["own"]["nights"]
    verdicts = Counter(night["verdict"] for night in nights if night["verdict"])
    calls = sum(night["lm_calls"] for night in nights)
    print(used)
    print(f"{backtest['traces']} traces, {len(nights)} nights, {calls} calls of the stand-in, {dict(verdicts)}")
    print(backtest["ended"])


def send(phoenix: Phoenix, count: int, days: int, reviewed: float) -> None:
    rng = random.Random(1)  # noqa: S311 - for variety
    habits = TrafficProfile(reviewed=reviewed)
    choices = {"agent": list(SAMPLE_AGENTS), "modality": [label.name for label in get_module("modality").labels or ()]}
    end = datetime.now(UTC) - timedelta(minutes=5)
    truths = list(sample_truths_for(habits, count, rng))
    start = end - timedelta(days=days)
    requests = list(simulate_requests(truths, choices, habits, start=start, end=end, rng=rng))
    for first in range(0, len(requests), BATCH):
        send_traffic(phoenix, TENANT, requests[first : first + BATCH])


def date_reviews(database: Path) -> None:
    """Phoenix dates an annotation when it is written, which here is long after its trace."""
    with sqlite3.connect(database, timeout=30) as connection:
        connection.execute(
            "UPDATE span_annotations SET updated_at = (SELECT strftime('%Y-%m-%d %H:%M:%f', s.start_time, "
            "'+' || (abs(s.id * 7919) % 86400) || ' seconds') FROM spans s WHERE s.id = span_rowid)"
        )
    connection.close()


def run(home: Path, endpoint: str, nights: int, max_calls: int | None) -> tuple[str, dict]:
    """Return what the command used, and what it printed."""
    command = [str(Path(sys.executable).parent / "autoopt"), "backtest", TENANT, "--module", "routing", "--json"]
    command += ["--days", str(nights), *(["--max-calls", str(max_calls)] if max_calls else [])]
    env = {**os.environ, "AUTOOPT_HOME": str(home), "AUTOOPT_PHOENIX_ENDPOINT": endpoint}
    began = time.monotonic()
    answer = subprocess.run(command, env=env, cwd=home, check=False, stdout=subprocess.PIPE)  # noqa: S603 - our own
    seconds, own = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = f"{seconds:.1f} s, {own.ru_utime + own.ru_stime:.1f} s of CPU, {own.ru_maxrss // 1024} MB"
    return used, json.loads(answer.stdout)


if __name__ == "__main__":
    main()
