"""Durations as people write and read them: `90s`, `45m`, `2h`, `30d`, `1h30m`. They are kept as numbers."""

import re
from typing import Any

from pydantic import ValidationInfo

_SIZES = {"d": 86400, "h": 3600, "m": 60, "s": 1}
"""Seconds in each unit, the largest first."""

_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([dhms])", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(rf"(?:{_PART.pattern}\s*)+", re.ASCII | re.IGNORECASE)

_UNITS_OF_FIELDS = {"_seconds": 1, "_days": 86400}
"""Seconds that the number in a field means, by the end of the field's name."""


def seconds_in(text: str) -> float | None:
    """The seconds of a duration with units; None where the text is none, e.g. a mere number."""
    if not _WHOLE.fullmatch(text.strip()):
        return None
    return sum(float(number) * _SIZES[unit.lower()] for number, unit in _PART.findall(text))


def as_duration(seconds: float) -> str:
    """`1h30m` for 5400: exact, with the largest units first."""
    if seconds != int(seconds):
        return f"{seconds:.15g}s"
    parts, left = "", int(seconds)
    for unit, size in _SIZES.items():
        count, left = divmod(left, size)
        parts += f"{count}{unit}" if count else ""
    return parts or "0s"


def read_duration(value: Any, info: ValidationInfo) -> Any:
    """For a validator of fields that hold durations: the number that one means; what is none stays as it is."""
    seconds = seconds_in(value) if isinstance(value, str) else None
    unit = _unit_of(info.field_name or "")
    return value if seconds is None or unit is None else seconds / unit


def holds_duration(field: str) -> bool:
    """Whether a field of that name holds one."""
    return _unit_of(field) is not None


def as_written(field: str, value: Any) -> Any:
    """What people are shown of a field's value: a duration where it holds one and the value is one; else the value."""
    unit = _unit_of(field)
    if unit is None or isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value * unit < 1e15:
        return value
    text = as_duration(value * unit)
    # Nothing is shown otherwise than it is: what is shown may be saved again.
    return text if seconds_in(text) == value * unit and value * unit / unit == value else value


def durations_written(document: Any) -> Any:
    """A document with its durations as people read them."""
    if isinstance(document, dict):
        return {name: as_written(str(name), durations_written(value)) for name, value in document.items()}
    return [durations_written(each) for each in document] if isinstance(document, list) else document


def _unit_of(field: str) -> int | None:
    return next((unit for end, unit in _UNITS_OF_FIELDS.items() if field.endswith(end)), None)
