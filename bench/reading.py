"""What does reading a tenant's training data cost, us and the server?

    python bench/reading.py

reads projects of a thousand to a hundred thousand decisions, each a trace of three spans with 2 KB of attributes, as a
run does: selected columns, page by page. Beside it, Phoenix's data frame of all spans with all attributes, which takes
7 GB for the largest. Ten thousand are read of a Phoenix on Postgres too, where that is installed. Meanwhile /healthz is
asked 20 times a second. Writes bench/results/reading.json, reading.md and reading.svg; see bench/README.md.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from fleet import HOUR, own_database, postgres, write_traces
from measuring import cpu_of, in_own_process, peak_mb, phoenix_process
from writing import Line, table, write_plot, write_results

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.stack import start_phoenix, wait_for_phoenix
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.reader import collect

if TYPE_CHECKING:
    import pandas as pd

ON_POSTGRES = 10_000
"""Decisions that are read from Postgres too."""

WAYS = {"ours": "a run of `routing`", "frame": "data frame of everything"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(read(*arguments.read)))
    else:
        run(sorted(arguments.decisions))


def run(sizes: list[int]) -> None:
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary, Processes(Path(temporary) / "logs") as processes:
        folder = Path(temporary)
        folder.chmod(0o755)  # for the user that Postgres runs as
        found += measure(processes, "SQLite", folder / "phoenix", None, sizes)
        with postgres(processes, folder / "postgres") as url:
            if url:
                own = own_database(url, "phoenix")
                found += measure(processes, "Postgres", folder / "phoenix-on-postgres", own, [ON_POSTGRES])
    write_results("reading", found, table([_line(row) for row in found]))
    plot([row for row in found if row["database"] == "SQLite"])


def measure(
    processes: Processes, database: str, folder: Path, url: str | None, sizes: list[int]
) -> Iterator[dict[str, Any]]:
    """What each way of reading costs, from a Phoenix of its own."""
    endpoint = start_phoenix(processes, folder, free_port(), free_port(), database_url=url)
    wait_for_phoenix(processes, endpoint)
    server = phoenix_process(folder)
    url = url or f"sqlite:///{folder / 'phoenix.db'}"
    for size in sizes:
        now, tenant = datetime.now(UTC), f"tenant-{size}"
        write_traces(url, [tenant], first=now - 20 * HOUR, last=now, count=size, size=2000)
        for way in WAYS:
            with health(endpoint) as slowest, cpu_of(server) as used:
                row = in_own_process(
                    __file__, "--read", endpoint, tenant, way, env={"PHOENIX_DISCOVER_CONFIG": "false"}
                )
            row |= {"healthz_seconds": slowest[0], "phoenix_cpu": used[0]}
            row = {"database": database, "decisions": size, "way": way, **row}
            print(json.dumps(row), flush=True)
            yield row


def read(endpoint: str, tenant: str, way: str) -> dict[str, Any]:
    """Read a tenant's last day in this process, which has imported what is needed before."""
    from phoenix.client import Client

    before = peak_mb()
    end = datetime.now(UTC)
    began, spent = time.monotonic(), time.process_time()
    if way == "ours":
        rows = len(collect(Phoenix(endpoint), tenant, get_module("routing"), start=end - 24 * HOUR, end=end).decisions)
    else:
        frame: pd.DataFrame = Client(base_url=endpoint).spans.get_spans_dataframe(
            project_identifier=project_name(tenant), start_time=end - 24 * HOUR, limit=1_000_000, timeout=3600
        )
        rows = len(frame)
    return {
        "rows": rows,
        "wall": time.monotonic() - began,
        "cpu": time.process_time() - spent,
        "memory_mb": peak_mb() - before,
    }


@contextmanager
def health(endpoint: str) -> Generator[list[float]]:
    """The slowest answer of /healthz, in seconds."""
    slowest, done = [0.0], threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=endpoint, timeout=600) as client:
            while not done.is_set():
                began = time.monotonic()
                client.get("/healthz").raise_for_status()
                slowest[0] = max(slowest[0], time.monotonic() - began)
                done.wait(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield slowest
    finally:
        done.set()
        thread.join()


def plot(found: list[dict[str, Any]]) -> None:
    measured = {"wall": "{}", "healthz_seconds": "slowest /healthz: {}"}
    lines = [
        Line(label.format(name), [(row["decisions"], row[column]) for row in found if row["way"] == way])
        for column, label in measured.items()
        for way, name in WAYS.items()
    ]
    write_plot("reading", lines, x="decisions", y="seconds")


def _line(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "database": row["database"],
        "decisions": row["decisions"],
        "way": WAYS[row["way"]],
        "rows": row["rows"],
        "wall s": round(row["wall"], 2),
        "CPU s": round(row["cpu"], 2),
        "Phoenix CPU s": round(row["phoenix_cpu"], 1),
        "MB more": round(row["memory_mb"]),
        "slowest /healthz, s": round(row["healthz_seconds"], 2),
    }


if __name__ == "__main__":
    main()
