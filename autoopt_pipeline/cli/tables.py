"""Tables that never break a word, so that people can copy versions, runs and tenants on any terminal."""

from collections.abc import Collection, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from autoopt_pipeline.cli.context import console

# Characters between two columns of a table.
_PADDING = 3


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> None:
    """Print rows of markup. Wide cells are wrapped between words. If even that does not fit, each row becomes lines.

    The columns `right` are aligned to the right.
    """
    columns = list(zip(headers, *rows, strict=True))
    least = [max(_longest(cell.split()) for cell in map(_plain, column)) for column in columns]
    whole = [max(_longest(cell.splitlines()) for cell in map(_plain, column)) for column in columns]
    room = console.width - _PADDING * len(headers) - 1 - sum(least)
    if room < 0:
        _print_lines(headers, rows)
        return
    wanted = sum(whole) - sum(least)
    table = Table(box=box.SIMPLE_HEAD)
    for header, low, high in zip(headers, least, whole, strict=True):
        width = high if wanted <= room else low + (high - low) * room // wanted
        table.add_column(header, width=width, justify="right" if header in right else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_lines(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        indent = ""
        for header, cell in zip(headers, row, strict=True):
            if cell:
                first, *others = cell.splitlines()
                console.print(f"{indent}{header}: {first}" if header else f"{indent}{first}")
                for line in others:
                    console.print(f"    {line}")
            indent = "  "


def _plain(cell: str) -> str:
    return Text.from_markup(cell).plain


def _longest(texts: Sequence[str]) -> int:
    return max((Text(text).cell_len for text in texts), default=0)
