"""Validation of data that people write: errors are one line, and unknown fields get the nearest known name."""

import difflib
from collections.abc import Hashable
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails
from yaml.constructor import BaseConstructor, ConstructorError

from autoopt_pipeline.durations import as_written, holds_duration


class Strict(BaseModel):
    """A frozen model that refuses unknown fields and suggests the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in data:
                if name not in cls.model_fields:
                    close = difflib.get_close_matches(str(name), cls.model_fields, n=1, cutoff=0.5)
                    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown field {str(name)[:60]!r}; {hint}")
        return data


def first_error(error: ValidationError) -> str:
    """Describe the first error: its place, its message, and the value unless the message shows it."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    return f"{place}: {describe_error(first)}" if place else describe_error(first)


# Our messages for pydantic's types of errors. Every text field here requires one character at most, so a text that is
# too short is empty.
_WORDS = {
    "missing": "is missing",
    "bool_type": "has to be true or false",
    "bool_parsing": "has to be true or false",
    "int_type": "has to be a whole number",
    "int_parsing": "has to be a whole number",
    "int_parsing_size": "has to be a whole number",
    "int_from_float": "has to be a whole number",
    "float_type": "has to be a number",
    "float_parsing": "has to be a number",
    "finite_number": "has to be a number",
    "string_type": "has to be text",
    "list_type": "has to be a list",
    "tuple_type": "has to be a list",
    "dict_type": "has to hold fields",
    "model_type": "has to hold fields",
    "model_attributes_type": "has to hold fields",
    "string_too_long": "is longer than {max_length} characters",
    "too_long": "has too many entries, at most {max_length} allowed",
    "string_too_short": "is empty",
    "too_short": "has too few entries, at least {min_length} needed",
    "string_pattern_mismatch": "has characters that cannot stand here",
    "literal_error": "has to be {expected}",
    "enum": "has to be {expected}",
    "greater_than": "has to be more than {gt}",
    "greater_than_equal": "has to be {ge} or more",
    "less_than": "has to be less than {lt}",
    "less_than_equal": "has to be {le} or less",
    "datetime_type": "has to be a time such as 2026-01-31T08:00:00Z",
    "datetime_parsing": "has to be a time such as 2026-01-31T08:00:00Z",
    "datetime_from_date_parsing": "has to be a time such as 2026-01-31T08:00:00Z",
    "timezone_aware": "has to be a time with its zone, such as 2026-01-31T08:00:00Z",
    "ip_any_network": "has to be an address or a network such as 10.0.0.0/8",
}

_NUMBERS = frozenset({"int_type", "int_parsing", "int_parsing_size", "int_from_float", "float_type", "float_parsing"})
# Types of errors whose message does not quote the value. Our own validators decide themselves whether to quote it,
# because it may be a secret.
_WITHOUT_VALUE = frozenset({"value_error", "missing", "string_too_short", "too_short"})


def describe_error(error: ErrorDetails) -> str:
    """Describe one error without its place, and quote the value where that helps."""
    kind, value = error["type"], error["input"]
    field = str(error["loc"][-1]) if error["loc"] else ""
    if kind in _NUMBERS and holds_duration(field):
        message = "has to be a duration such as 90s, 45m, 2h or 30d, or the number alone"
    elif kind in _WORDS:
        message = _WORDS[kind].format_map({name: _bound(field, bound) for name, bound in error.get("ctx", {}).items()})
    else:
        message = error["msg"].removeprefix("Value error, ")
    if kind in _WITHOUT_VALUE or not error["loc"] or isinstance(value, dict | list):
        return message
    return f"{message} (got {str(as_written(field, value))[:60]!r})"


def _bound(field: str, value: Any) -> str:
    shown = as_written(field, value)
    return f"{shown:.15g}" if isinstance(shown, float) else str(shown)


class UniqueKeys(BaseConstructor):
    """Makes a YAML loader refuse a repeated key. PyYAML itself would silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConstructorError(None, None, f"{key.value!r} appears twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)
