"""Writes the tables of docs/configuration.md from the models: `python -m tests.support.config_reference`."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import AliasChoices, BaseModel, SecretStr

from autoopt_pipeline.durations import as_written, holds_duration
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from tests.support.project import PROJECT

DOCUMENT = PROJECT / "docs" / "configuration.md"
_TYPES = {"boolean": "`true` or `false`", "integer": "whole number", "number": "number", "string": "text"}


def with_tables(text: str) -> str:
    """The document with each table between its marks as the models are now."""
    for mark, rows in (("fields", _fields(RoutingConfigUnified)), ("variables", _variables())):
        table = "\n".join(rows)
        block = f"<!-- {mark}, written by tests/support/config_reference.py -->\n{table}\n<!-- end of {mark} -->"
        text = re.sub(f"<!-- {mark}, .*?<!-- end of {mark} -->", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def _fields(model: type[BaseModel]) -> Iterator[str]:
    schema = model.model_json_schema()
    yield from ("| field | value | default | meaning |", "|---|---|---|---|")
    yield from _rows(schema, schema["$defs"], model.model_validate({"tenant_id": "x"}).model_dump(mode="json"), "")


def _rows(schema: dict, models: dict, defaults: dict, prefix: str) -> Iterator[str]:
    for name, field in schema["properties"].items():
        follows = as_written(name, defaults.get(name, field.get("default")))
        default = "required" if name in schema.get("required", ()) else _default(follows)
        yield f"| `{prefix}{name}` | {_value(name, field)} | {default} | {field.get('description', '')} |"
        inner = models.get(_model(field) or "")
        if inner and prefix + name not in {"teacher_lm", "candidate_lms", "judge.lm"}:  # as lm
            below = {"array": "[].", "object": ".MODULE."}.get(field.get("type", ""), ".")
            yield from _rows(inner, models, {}, f"{prefix}{name}{below}")


def _model(field: dict) -> str | None:
    """The name of the model that a field holds, be it in a list, under keys, or with null beside it."""
    places = [field, field.get("items", {}), field.get("additionalProperties", {}), *field.get("anyOf", ())]
    return next((each["$ref"].rpartition("/")[2] for each in places if isinstance(each, dict) and "$ref" in each), None)


def _value(name: str, field: dict) -> str:
    if "anyOf" in field:
        return " or ".join(_value(name, each) for each in field["anyOf"] if each.get("type") != "null")
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type")
    if kind == "array":
        return f"list of {_value('', field['items'])}"
    if holds_duration(name):
        return "duration" + _bounds(name, field)
    if kind in _TYPES:
        return "time with its zone" if field.get("format") == "date-time" else _TYPES[kind] + _bounds(name, field)
    return "fields" if "$ref" in field else "fields by module"


def _bounds(name: str, field: dict) -> str:
    least, most = (_bound(name, field.get(end)) for end in ("minimum", "maximum"))
    if least and most:
        return f", {least} to {most}"
    if least:
        return f", {least} or more"
    return ", more than 0" if field.get("exclusiveMinimum") == 0 else ""


def _bound(name: str, limit: float | None) -> str:
    shown = as_written(name, limit)
    return "" if shown is None else shown if isinstance(shown, str) else f"{shown:.15g}"


def _default(value: Any) -> str:
    if isinstance(value, dict) and value:
        return (
            ", ".join(f"`{name}`" for name in value)
            if all(isinstance(v, dict) for v in value.values())
            else "see below"
        )
    return "" if value is None else f"`{json.dumps(value)}`"


def _variables() -> Iterator[str]:
    yield from ("| variable | default | meaning |", "|---|---|---|")
    for name, field in Settings.model_fields.items():
        aliases = field.validation_alias
        names = (
            [str(each) for each in aliases.choices]
            if isinstance(aliases, AliasChoices)
            else [f"AUTOOPT_{name.upper()}"]
        )
        shown = "" if field.default_factory or field.default is None else f"`{field.default}`"
        assert not isinstance(field.default, SecretStr)
        yield f"| {' or '.join(f'`{each}`' for each in names)} | {shown} | {field.description} |"


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
