"""Changed fields of a configuration, as lines for people."""

import json
from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from autoopt_pipeline.cli.context import console
from autoopt_pipeline.tenants.changes import FieldChange
from autoopt_pipeline.wording import one_line


def print_changes(found: Sequence[FieldChange]) -> None:
    for change in found:
        line = f"{change.field}: {_shown(change.before)} -> {_shown(change.after)}"
        console.print(f"  {escape(line)}", soft_wrap=True)
    if not found:
        console.print("  no field differs")


def _shown(value: Any) -> str:
    return "none" if value is None else one_line(json.dumps(value, ensure_ascii=False), full=False)
