"""Prints the changed fields of a configuration."""

from collections.abc import Sequence

from rich.markup import escape

from autoopt_pipeline.cli.context import console
from autoopt_pipeline.tenants.diff import FieldChange


def print_changes(changes: Sequence[FieldChange]) -> None:
    for change in changes:
        line = f"{change.field}: {change.display(change.before)} -> {change.display(change.after)}"
        console.print(f"  {escape(line)}")
    if not changes:
        console.print("  no field differs")
