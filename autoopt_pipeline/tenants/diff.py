"""How two versions of a configuration differ, field by field."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autoopt_pipeline.durations import as_written, durations_written
from autoopt_pipeline.errors import AutooptError, InvalidConfig
from autoopt_pipeline.tenants.config import MAY_HOLD_SECRETS, field_errors
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.text import one_line


def may_be_secret(field: str, value: object) -> bool:
    """Whether a value may be a key or contain a password that does not belong in a configuration."""
    name = field.rpartition(".")[2]
    if name not in MAY_HOLD_SECRETS or value is None:
        return False
    return bool(field_errors({"tenant_id": "any", "lm": {"model": "any", name: value}}))


@dataclass(frozen=True)
class FieldChange:
    """A field by its dotted path, and its values in two versions; None if it is absent or null."""

    field: str
    before: Any
    after: Any

    def display(self, value: Any) -> str:
        """Format one of the two values for people."""
        if may_be_secret(self.field, value):
            return "not shown, because it may be a secret"
        shown = as_written(self.field, value)
        if shown is not value:
            return shown
        return "none" if value is None else one_line(json.dumps(durations_written(value), ensure_ascii=False))


def in_effect(entry: StoredConfig) -> object | None:
    """All fields of a configuration, including defaults. An invalid one is returned as it is stored."""
    try:
        return entry.parse().model_dump(mode="json")
    except AutooptError:
        return entry.document


def version_before(versions: Sequence[StoredConfig], after: StoredConfig) -> int:
    """The newest saved version before another one. Raises `InvalidConfig` if there is none."""
    earlier = [entry.version for entry in versions if entry.document is not None and entry.version < after.version]
    if not earlier:
        raise InvalidConfig(
            f"tenant {after.tenant_id}: nothing was saved before version {after.version}", "choose a later version"
        )
    return earlier[-1]


def changed_fields(before: object, after: object) -> list[FieldChange]:
    """The fields that differ between two documents, by path.

    Lists of named entries, such as agents and models, are compared by name, other lists as a whole.
    """
    old, new = dict(_fields(before)), dict(_fields(after))
    return [
        FieldChange(path, old.get(path), new.get(path))
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path)
    ]


def _fields(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        # The entries of candidate_lms may hold a secret, so they are told apart even where one lacks its name.
        naming = "model" if path == "candidate_lms" else "name"
        if path == "candidate_lms" or all(naming in entry for entry in value):
            value = {
                str(entry.get(naming, place)): {k: v for k, v in entry.items() if k != naming}
                for place, entry in enumerate(value)
            }
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            if path == "modules":
                yield f"modules.{name}", {}  # a module is on the list even if nothing is set for it
            yield from _fields(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value
