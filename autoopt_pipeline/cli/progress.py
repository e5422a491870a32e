"""Shows the progress of a run on a terminal: a bar for each module in a long phase, below the lines of its log."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from autoopt_pipeline.cli.context import Screen
from autoopt_pipeline.lm.progress import Progress

if TYPE_CHECKING:
    from autoopt_pipeline.run_history.progress import ShowProgress

_BAR_WIDTH = 20


@dataclass(frozen=True)
class View:
    """The console for lines, and the function that shows bars. Without `show` there are only lines."""

    lines: Console
    show: "ShowProgress | None" = None


@contextmanager
def viewing() -> Generator[View, None, None]:
    """Draw bars only if stderr is a terminal."""
    lines = Screen(file=sys.stdout)  # the current stdout, because the run redirects it while DSPy's optimizers work
    if not sys.stderr.isatty():
        yield View(lines)
        return
    # While a step runs in this process, Dagster redirects stderr to the step's log.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding) as terminal:
        screen = Screen(file=terminal)
        if not screen.is_interactive:
            yield View(lines)
            return
        bars = Bars(
            BarColumn(_BAR_WIDTH),
            TextColumn("{task.description}", markup=False),
            console=screen,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with bars:
            # If both are one terminal, the lines have to go through the console that draws the bars.
            yield View(screen if sys.stdout.isatty() else lines, _shown_by(bars))


def _shown_by(bars: Bars) -> "ShowProgress":
    tasks: dict[str, TaskID] = {}

    def show(module: str, progress: Progress | None) -> None:
        if progress is None:
            if module in tasks:
                bars.remove_task(tasks.pop(module))
            return
        text = f"{module}: {progress.phase}, {progress.count}\n{progress.cost}"
        if module not in tasks:
            tasks[module] = bars.add_task(text)
        bars.update(tasks[module], description=text, completed=progress.done, total=progress.total)

    return show
