"""Conversions of values from outside. None of them raises."""

import json
import math
from typing import Any


def number(value: Any) -> float | None:
    """Return a finite number, or None. Booleans and text are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None


def boolean(value: Any) -> bool | None:
    """Return a boolean, or None. Accepts 1 and 0, because Phoenix on SQLite returns these for booleans."""
    return bool(value) if isinstance(value, bool | int) and value in {0, 1} else None


def parse_json(text: str) -> Any:
    """Parse JSON. Returns None for invalid or too deeply nested text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def as_text(value: Any) -> str | None:
    """Return text unchanged, None as "", other values as JSON, and None for a value that JSON cannot represent."""
    if value is None or isinstance(value, str):
        return encodable(value or "")
    try:
        return encodable(json.dumps(value, ensure_ascii=False, default=str))
    except (TypeError, ValueError, RecursionError):
        return None


def stripped(value: Any) -> str | None:
    """Return text without surrounding white space, or None if nothing is left or it is not text."""
    return encodable(value).strip() or None if isinstance(value, str) else None


def encodable(text: str) -> str:
    """Replace characters that not every store accepts by U+FFFD.

    Lone surrogates, as in truncated JSON, have no encoding, and Postgres rejects NUL.
    """
    text = text.replace("\0", "\ufffd")
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
