"""What does the overview of all tenants cost, and after how long does its first page have rows?

    python bench/overview.py --tenants 100 1000 10000

makes tenants with a past and an active version of every module, and reads what the overview shows, in a process of its
own for each way: the first tenants, all of them for the first time and once more, and, for comparison, all of them with
two files for each module in place of the index. No module is due, so Phoenix is not asked. Prints CPU seconds and how
many requests an object store would get: a list for each 1,000 names, and one for each file.
"""

import argparse
import gc
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fleet import HOUR, make_home, names, write_configs, write_history
from measuring import in_own_process
from serving_index import LISTED_AT_ONCE, fill
from writing import table

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.run_history.instance import open_instance

WEEK_SECONDS = 7 * 86_400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--measure", choices=["index", "files"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(by_index=arguments.measure == "index")))
        return
    rows = []
    for size in sorted(arguments.tenants):
        with tempfile.TemporaryDirectory() as temporary:
            home = Path(temporary)
            make_fleet(home, size)
            for way in ("files", "index"):
                env = {"DAGSTER_HOME": str(home), "AUTOOPT_HOME": str(home / ".autoopt")}
                found = in_own_process(__file__, "--measure", way, env=env)
                rows += [{"tenants x 5": size, "what serves by": way} | row for row in found]
    print(table(rows))


def make_fleet(home: Path, size: int) -> None:
    make_home(home)
    data = home / ".autoopt"
    data.mkdir(exist_ok=True)
    tenants = names(size)
    with open_instance(home) as instance:
        write_history(instance, tenants, at=datetime.now(UTC) - 2 * HOUR, troubled=False)
    write_configs(f"sqlite:///{data / 'config.db'}", tenants, interval_seconds=WEEK_SECONDS)
    (data / "artifacts").mkdir()
    fill(data / "artifacts", tenants)


def measure(*, by_index: bool) -> list[dict[str, Any]]:
    from autoopt_pipeline.__main__ import OBJECTS_BETWEEN_COLLECTIONS
    from autoopt_pipeline.clients import Connections
    from autoopt_pipeline.dashboard.context import FIRST_TENANTS
    from autoopt_pipeline.dashboard.overview_query import Query, select
    from autoopt_pipeline.settings import load_settings
    from autoopt_pipeline.status.fleet_decisions import FleetDecisions
    from autoopt_pipeline.status.module_status import ModuleStatus, tenant_standings
    from autoopt_pipeline.status.week import read_week

    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)  # as the command does
    connections, fleet = Connections(load_settings()), FleetDecisions()
    rows = []
    with open_instance(Path(os.environ["DAGSTER_HOME"])) as instance, counted_requests() as requests:

        def standings(count: int | None = None) -> list[ModuleStatus]:
            stored = connections.configs.current()
            some = {tenant: stored[tenant] for tenant in sorted(stored)[:count]}
            now = datetime.now(UTC)
            known = fleet if by_index and count is None else None
            return tenant_standings(some, instance, connections, now=now, fleet=known)

        def everything() -> None:
            read_week(instance, datetime.now(UTC))
            select(standings(), Query())

        looks: list[tuple[str, Callable[[], Any]]] = [("all, first", everything), ("all, again", everything)]
        if by_index:
            looks.insert(0, (f"first {FIRST_TENANTS}", lambda: standings(FIRST_TENANTS)))
        for name, look in looks:
            requests["requests"] = 0
            began, spent = time.monotonic(), time.process_time()
            look()
            cpu, wall = time.process_time() - spent, time.monotonic() - began
            rows.append({"view": name, "CPU s": round(cpu, 2), "wall s": round(wall, 2), **requests})
    return rows


@contextmanager
def counted_requests() -> Generator[dict[str, int]]:
    """The requests that an object store would get."""
    counts = {"requests": 0}
    read, read_many, listed = ObjectStore.read, ObjectStore.read_many, ObjectStore.names

    def counting_read(self: ObjectStore, path: str) -> Any:
        counts["requests"] += 1
        return read(self, path)

    def counting_many(self: ObjectStore, paths: Any) -> Any:
        counts["requests"] += len(paths)
        return read_many(self, paths)

    def counting_names(self: ObjectStore, folder: str) -> Any:
        found = listed(self, folder)
        counts["requests"] += math.ceil(max(1, len(found)) / LISTED_AT_ONCE)
        return found

    ObjectStore.read, ObjectStore.read_many, ObjectStore.names = counting_read, counting_many, counting_names
    try:
        yield counts
    finally:
        ObjectStore.read, ObjectStore.read_many, ObjectStore.names = read, read_many, listed


if __name__ == "__main__":
    main()
