"""Where a benchmark leaves what it measured: numbers as JSON, tables for bench/README.md, and plots."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Line:
    """One line of a plot. `guessed` where its points were not all measured."""

    label: str
    points: Sequence[tuple[float, float]]
    guessed: bool = False


def write_plot(name: str, lines: Sequence[Line], *, x: str, y: str, limit: float | None = None) -> None:
    """Write `results/NAME.svg`, both axes by powers; `limit` is a value of `y` that is not to be crossed."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "autoopt"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for line in lines:
        linestyle, marker = ("--", "x") if line.guessed else ("-", "o")
        axes.plot(*zip(*line.points, strict=True), linestyle=linestyle, marker=marker, label=line.label)
    if limit is not None:
        axes.axhline(limit, color="grey", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
