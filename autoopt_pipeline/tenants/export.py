"""Configurations as JSON lines, which `seed_import.read_rows` reads back."""

import json
from collections.abc import Iterable

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.tenants.config import chosen_fields
from autoopt_pipeline.tenants.stores.base import StoredConfig


def export_rows(entries: Iterable[StoredConfig]) -> tuple[list[str], list[AutooptError]]:
    """One line for each valid configuration, with the fields that were set, and the errors of the others."""
    lines: list[str] = []
    broken: list[AutooptError] = []
    for entry in entries:
        try:
            lines.append(json.dumps(chosen_fields(entry.parse())))
        except AutooptError as e:
            broken.append(e)
    return lines, broken
