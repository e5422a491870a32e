"""What does it cost to know what serves, of all tenants: by the index, and by two files for each module?

    python bench/serving_index.py --tenants 100 1000 10000

makes a store in which every module of every tenant has an active version, as promotions leave it, and reads it both
ways. Prints CPU seconds and how many requests an object store would get: a list for each 1,000 names, and one for each
file.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.serving_index import SERVING_INDEX, read_serving
from autoopt_pipeline.registry.version_store import read_manifests, read_pointers
from autoopt_pipeline.tenant_id import safe_name

LISTED_AT_ONCE = 1000
VERSION = "20260101T000000Z-0123abcd"
POINTER = json.dumps({"version": VERSION, "sequence": 1, "canary": None, "rolled_back": None}, indent=1)
MANIFEST = json.dumps(
    {
        "version": VERSION,
        "program_sha256": "0" * 64,
        "created_at": "2026-01-01T00:00:00Z",
        "demo_sources": {"decide": [f"{number:032x}" for number in range(50)]},
        "run_id": "r",
        "parent": None,
        "verdict": "promoted",
        "reason": "proven better: 70 fixed, 6 broken of 134 holdout traces",
        "window_start": "2026-01-01T00:00:00Z",
        "window_end": "2026-01-01T00:00:00Z",
        "examples": {"train": 200, "dev": 100, "holdout": 134},
        "provenance": {"human": 400},
        "incumbent_score": 0.4,
        "candidate_score": 0.9,
        "gate": {"alpha": 0.019, "gain": 0.5, "fixed": 70, "broken": 6, "cases": 134, "reviews": 134},
        "optimizer": "coverage-16",
        "tried": [{"optimizer": f"bootstrap-few-shot-{n}", "dev_score": 0.5, "judged_on": 55} for n in range(14)],
        "seed": 9,
        "lm": "stand-in",
        "stand_in": True,
        "lm_calls": 700,
        "lm_tokens": 2_000_000,
        "packages": {},
    }
)


def fill(root: Path, tenants: list[str]) -> None:
    (root / SERVING_INDEX).mkdir()
    for tenant in tenants:
        for module in modules():
            folder = root / safe_name(tenant) / module / "versions" / VERSION
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text(MANIFEST)
            (folder.parent.parent / "active.json").write_text(POINTER)
            (root / SERVING_INDEX / f"{safe_name(tenant)}.{module}.00000001.{VERSION}.900.-").touch()


def timed(read: Callable[[], int]) -> tuple[float, int]:
    began = time.process_time()
    found = read()
    return time.process_time() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, nargs="+", default=[100, 1000, 10_000])
    args = parser.parse_args()
    print("| tenants | modules | index, CPU s | requests | files, CPU s | requests | ratio |\n" + "|--:" * 7 + "|")
    for count in args.tenants:
        tenants = [f"tenant-{number:06d}" for number in range(count)]
        places = [(tenant, module) for tenant in tenants for module in modules()]
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder), tenants)
            files = ObjectStore(folder)

            def by_files(files: ObjectStore = files, places: list[tuple[str, str]] = places) -> int:
                return len(read_manifests(files, dict.fromkeys(read_pointers(files, places), VERSION)))

            def by_index(files: ObjectStore = files) -> int:
                return len(read_serving(files))

            index, found = timed(by_index)
            own, also_found = timed(by_files)
        if not found == also_found == len(places):
            raise SystemExit(f"{found} and {also_found} of {len(places)} modules were found")
        lists = math.ceil(found / LISTED_AT_ONCE)
        print(
            f"| {count:,} | {found:,} | {index:.2f} | {lists} | {own:.1f} | {2 * found:,} | {own / index:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
