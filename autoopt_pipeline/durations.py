"""Durations as people write and read them: `90s`, `45m`, `2h`, `30d`, `1h30m`. They are stored as numbers."""

import re
from typing import Any

from pydantic import ValidationInfo

# Seconds in each unit, largest first.
_SIZES = {"d": 86400, "h": 3600, "m": 60, "s": 1}

_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([dhms])", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(rf"(?:{_PART.pattern}\s*)+", re.ASCII | re.IGNORECASE)

# Unit of the number in a field, in seconds, by the suffix of the field's name.
_FIELD_UNITS = {"_seconds": 1, "_days": 86400}


def seconds_in(text: str) -> float | None:
    """The seconds of a duration with units; None for any other text, such as a mere number."""
    if not _WHOLE.fullmatch(text.strip()):
        return None
    return sum(float(number) * _SIZES[unit.lower()] for number, unit in _PART.findall(text))


def as_duration(seconds: float) -> str:
    """`1h30m` for 5400: exact, largest units first."""
    if seconds != int(seconds):
        return f"{seconds:.15g}s"
    text, rest = "", int(seconds)
    for unit, size in _SIZES.items():
        count, rest = divmod(rest, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def read_duration(value: Any, info: ValidationInfo) -> Any:
    """Validate a field that holds a duration: convert a duration to the field's number, and pass on any other value."""
    if not isinstance(value, str):
        return value
    seconds, unit = seconds_in(value), _unit_of(info.field_name or "")
    return value if seconds is None or unit is None else seconds / unit


def holds_duration(field: str) -> bool:
    """Whether a field with this name holds a duration."""
    return _unit_of(field) is not None


def as_written(field: str, value: Any) -> Any:
    """Format the value of a field that holds a duration as a duration; any other value is unchanged."""
    unit = _unit_of(field)
    if unit is None or isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value * unit < 1e15:
        return value
    text = as_duration(value * unit)
    # People may save the text again, so it has to mean exactly the same value.
    return text if seconds_in(text) == value * unit and value * unit / unit == value else value


def durations_written(document: Any) -> Any:
    """Format all durations in a document as people write them."""
    if isinstance(document, dict):
        return {name: as_written(str(name), durations_written(value)) for name, value in document.items()}
    return [durations_written(entry) for entry in document] if isinstance(document, list) else document


def _unit_of(field: str) -> int | None:
    return next((unit for suffix, unit in _FIELD_UNITS.items() if field.endswith(suffix)), None)
