"""How two versions of a configuration differ, field by field."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.tenants.store import StoredConfig


@dataclass(frozen=True)
class FieldChange:
    """A field by its dotted path, and what it holds in two versions; None where it is not there, or null."""

    field: str
    before: Any
    after: Any


def in_effect(entry: StoredConfig) -> object | None:
    """All fields with what they come to, defaults included; the document as it stands where it is no configuration."""
    try:
        return entry.parse().model_dump(mode="json")
    except AutooptError:
        return entry.document


def changed_fields(before: object, after: object) -> list[FieldChange]:
    """The fields that differ between two documents, by path.

    Entries of a list that have names, such as agents, are compared by name, other lists as a whole.
    """
    old, new = dict(_fields(before)), dict(_fields(after))
    return [
        FieldChange(path, old.get(path), new.get(path))
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path)
    ]


def _fields(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and value and all(isinstance(entry, dict) and "name" in entry for entry in value):
        value = {str(entry["name"]): {k: v for k, v in entry.items() if k != "name"} for entry in value}
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _fields(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value
