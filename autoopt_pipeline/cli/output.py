"""Changed fields of a configuration, as lines for people."""

from collections.abc import Sequence

from rich.markup import escape

from autoopt_pipeline.cli.context import console
from autoopt_pipeline.tenants.diff import FieldChange


def print_changes(found: Sequence[FieldChange]) -> None:
    for change in found:
        line = f"{change.field}: {change.display(change.before)} -> {change.display(change.after)}"
        console.print(f"  {escape(line)}")
    if not found:
        console.print("  no field differs")
