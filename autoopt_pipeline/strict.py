"""Data that a person wrote: unknown fields are refused with the nearest known name, and an error is one line."""

import difflib
from collections.abc import Hashable
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails
from yaml.constructor import BaseConstructor, ConstructorError


class Strict(BaseModel):
    """A frozen model that refuses unknown fields, naming the nearest known one."""

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
    """The place, what is wrong there, and the value, where the message does not show it already."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    return f"{place}: {what_is_wrong(first)}" if place else what_is_wrong(first)


def what_is_wrong(error: ErrorDetails) -> str:
    """One error without its place, with the value, where the message does not show it already."""
    message = error["msg"].removeprefix("Value error, ")
    shown = repr(str(error["input"])[:60])
    said_already = not error["loc"] or isinstance(error["input"], dict | list) or shown in message
    return message if said_already else f"{message} (got {shown})"


class UniqueKeys(BaseConstructor):
    """For a YAML loader: refuses a key that is given twice, of which the last would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)
