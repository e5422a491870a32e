"""A tenant's configuration as a form, and one field of many tenants'. Pure, but for the modules that are installed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autoopt_pipeline.dashboard.form_fields import Filled, Input, Shape, Texts, fill, form, inputs, shape_of
from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.modules.catalog import module_names
from autoopt_pipeline.tenants.checking import check_names, wrong_models
from autoopt_pipeline.tenants.config import (
    RoutingConfigUnified,
    check_modules,
    chosen_fields,
    parse_config,
    wrong_fields,
)
from autoopt_pipeline.tenants.diff import FieldChange, changed_fields, may_be_secret
from autoopt_pipeline.tenants.stores.base import StoredConfig

_ANY = {"tenant_id": "any"}


def configuration_shapes() -> tuple[Shape, ...]:
    """The fields of a configuration that can be changed."""
    defaults = RoutingConfigUnified.model_validate(_ANY).model_dump(mode="json")
    found = shape_of(RoutingConfigUnified, defaults, {"modules": module_names()})
    return tuple(shape for shape in found if shape.key != "tenant_id")


def checked(filled: Filled, before: Any = None) -> tuple[RoutingConfigUnified | None, dict[str, str]]:
    """The configuration that a filled-in form comes to after what was stored `before`; or none, and what is wrong by
    the inputs' names."""
    if wrong := wrong_fields(filled.document):
        return None, filled.errors(wrong)
    config = parse_config(filled.document, where="configuration")
    try:
        check_modules(config, before)
    except InvalidConfig as e:
        return None, {"modules": str(e)}
    if wrong_lms := wrong_models(config, before):
        return None, {field: str(error) for field, error in wrong_lms.items()}
    return config, {}


def without_secrets(texts: Texts) -> dict[str, tuple[str, ...]]:
    """The same without what may be a secret that was typed where none belongs."""
    return {name: typed for name, typed in texts.items() if not may_be_secret(name, "".join(typed) or None)}


def changeable(shapes: Iterable[Shape]) -> Mapping[str, Input]:
    """The inputs that can be changed of many tenants at once, by name: all that hold a single value."""
    return {each.name: each for each in inputs(form(tuple(shapes), {}, {}))}


def wrong_value(shapes: tuple[Shape, ...], name: str, text: str) -> str:
    """Why no configuration can have this value there; "" where some may."""
    filled = fill(shapes, _ANY, {name: (text,)})
    return filled.errors(wrong_fields(filled.document)).get(name, "")


@dataclass(frozen=True)
class Planned:
    """What setting one field comes to for a tenant. `after` is None where nothing changes, and where it cannot be:
    then `refused` says why."""

    tenant_id: str
    version: int
    before: RoutingConfigUnified | None = None
    after: RoutingConfigUnified | None = None
    refused: str = ""

    @property
    def changes(self) -> list[FieldChange]:
        """Which fields get another value; none where the same value is chosen now, or is not any more."""
        if self.before is None or self.after is None:
            return []
        return changed_fields(self.before.model_dump(mode="json"), self.after.model_dump(mode="json"))


def plan_change(shapes: Iterable[Shape], entry: StoredConfig, name: str, text: str) -> Planned:
    """Set one field of a tenant's configuration, or let it follow the default where the text is empty."""
    concerned = [shape for shape in shapes if shape.key == name.partition(".")[0]]
    try:
        before = entry.parse()
        document = chosen_fields(before)
        filled = fill(concerned, document, {name: (text,)})
        if filled.document == document:
            return Planned(entry.tenant_id, entry.version)
        after = parse_config(filled.document, where=f"tenant {entry.tenant_id}")
        check_names(after, document)
    except InvalidConfig as e:
        return Planned(entry.tenant_id, entry.version, refused=str(e))
    return Planned(entry.tenant_id, entry.version, before, after)
