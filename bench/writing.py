"""Where a benchmark leaves what it measured: numbers as JSON, and tables for bench/README.md."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, with the rows' names as heads. Floats stand as they were rounded."""
    return tabulate(rows, headers="keys", tablefmt="pipe", intfmt=",", floatfmt="")


def write_results(name: str, found: Any, *tables: str) -> None:
    """Write `results/NAME.json` and `NAME.md`, and print what stands there."""
    text = "\n\n".join(tables) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
