"""Reading values that others wrote. Whatever they hold, nothing here raises."""

import json
import math
from typing import Any


def number(value: Any) -> float | None:
    """A finite number, None where the value is none. Booleans and text are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond the range of floats
        return None


def boolean(value: Any) -> bool | None:
    """A boolean, None where the value is none. Phoenix on SQLite, which has none, gives 1 and 0 for what was sent."""
    return bool(value) if isinstance(value, bool | int) and value in {0, 1} else None


def parse_json(text: str) -> Any:
    """What JSON says, None where it is none or nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def as_text(value: Any) -> str | None:
    """Text as it is, nothing as "", and whatever else as JSON; None where it cannot be written as that."""
    if value is None or isinstance(value, str):
        return encodable(value or "")
    try:
        return encodable(json.dumps(value, ensure_ascii=False, default=str))
    except (TypeError, ValueError, RecursionError):
        return None


def stripped(value: Any) -> str | None:
    """Text without space around it, None where nothing is left or it is no text."""
    return encodable(value).strip() or None if isinstance(value, str) else None


def encodable(text: str) -> str:
    """The text with U+FFFD for what cannot be stored everywhere: halves of characters, as JSON that was cut off leaves
    them, have no encoding, and Postgres takes no NUL."""
    text = text.replace("\0", "\ufffd")
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
