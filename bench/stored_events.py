"""What does it cost to read outcomes from Dagster's tables, and with Dagster's own objects?

    python bench/stored_events.py --tenants 1000 10000

reads the usage of a day in which every module of every tenant had two outcomes, as the sensor's first tick with a daily
budget of all tenants does, both ways. Prints CPU seconds.
"""

import argparse
import tempfile
import time
from datetime import UTC, datetime, timedelta

import dagster as dg
from fleet import names, write_history

from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.run_history.lm_usage import read_usage, usage_of
from autoopt_pipeline.run_history.module_events import EventKind, read_events
from autoopt_pipeline.scheduling.budgets import LMUsage

GENERATIONS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, nargs="+", default=[1000, 10_000])
    args = parser.parse_args()
    print(
        "| tenants | outcomes | from the tables, CPU s | with Dagster's objects, CPU s | ratio |\n|--:|--:|--:|--:|--:|"
    )
    for count in args.tenants:
        now = datetime.now(UTC)
        since = now - timedelta(days=1)
        with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.local_temp(folder) as instance:
            write_history(instance, names(count), at=now - timedelta(hours=2), generations=GENERATIONS, troubled=False)
            began = time.process_time()
            own = read_usage(instance, modules(), since=since)
            from_tables = time.process_time() - began
            began = time.process_time()
            official: dict[str, LMUsage] = {}
            for module in modules():
                for kind in EventKind:
                    for event in read_events(instance, kind, module, since=since):
                        tenant = event.tenant or ""
                        official[tenant] = official.get(tenant, LMUsage()) + usage_of(event)
            with_objects = time.process_time() - began
        if own != official:
            raise SystemExit("the two ways differ")
        outcomes = count * len(modules()) * GENERATIONS
        print(
            f"| {count:,} | {outcomes:,} | {from_tables:.1f} | {with_objects:.1f} | {with_objects / from_tables:.1f} |"
        )


if __name__ == "__main__":
    main()
