"""Changing one field of many tenants: the fields to choose from, and the effect on each tenant. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from autoopt_pipeline.dashboard.config_form import with_value
from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.modules.catalog import module_names
from autoopt_pipeline.tenants.checking import check_names
from autoopt_pipeline.tenants.config import (
    RoutingConfigUnified,
    chosen_fields,
    field_errors,
    json_or_text,
    parse_config,
    with_field,
)
from autoopt_pipeline.tenants.diff import FieldChange, changed_fields
from autoopt_pipeline.tenants.stores.base import StoredConfig


def field_paths() -> list[str]:
    """The dotted paths of all fields that hold a single value."""
    model = {"model": "any"}
    modules: dict[str, object] = {name: {} for name in module_names()}
    config = RoutingConfigUnified.model_validate(
        {"tenant_id": "any", "lm": model, "teacher_lm": model, "judge": {"lm": model}, "modules": modules}
    )
    return [path for path in _paths(config.model_dump()) if path != "tenant_id"]


def _paths(value: object, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, f"{path}.{name}" if path else name)
    elif not isinstance(value, list):
        yield path


def wrong_value(path: str, text: str) -> str:
    """Why no configuration can have this value there; "" where some can."""
    document = with_value({"tenant_id": "any"}, path, json_or_text(text))
    return field_errors(document).get(tuple(path.split(".")), "")


@dataclass(frozen=True)
class PlannedChange:
    """What the change does to a tenant. `after` is None where nothing changes, and where the change is refused; then
    `refused` says why."""

    tenant_id: str
    version: int
    before: RoutingConfigUnified | None = None
    after: RoutingConfigUnified | None = None
    refused: str = ""

    @property
    def changes(self) -> list[FieldChange]:
        """The fields that get another value; none where the tenant only begins or ceases to choose the same value."""
        if self.before is None or self.after is None:
            return []
        return changed_fields(self.before.model_dump(mode="json"), self.after.model_dump(mode="json"))


def plan_change(entry: StoredConfig, path: str, text: str) -> PlannedChange:
    """Set one field as `autoopt config set` does, or let it follow the default where the text is empty."""
    try:
        before = entry.parse()
        document = chosen_fields(before)
        if text:
            after = with_field(before, path, text)
        else:
            after = parse_config(with_value(document, path, ""), where=f"tenant {entry.tenant_id}")
        if chosen_fields(after) == document:
            return PlannedChange(entry.tenant_id, entry.version)
        check_names(after, document)
    except InvalidConfig as e:
        return PlannedChange(entry.tenant_id, entry.version, refused=str(e))
    return PlannedChange(entry.tenant_id, entry.version, before, after)
