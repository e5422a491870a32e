"""Parses a model's answer. It accepts what is unambiguous to a person, despite surrounding text, and never guesses.

Models put thoughts first, print labels in bold, write a share as `90 %`, or answer in JSON instead of sections. DSPy's
own parsers accept none of these. Text that cannot be parsed raises `ValueError` and nothing else.
"""

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import json_repair
from dspy.adapters.utils import parse_value

_THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHTS = re.compile(r"\A.*</(?:think|thinking|thought|reasoning)>", re.DOTALL | re.IGNORECASE)
_HEADER = re.compile(r"\[\[ *## *(\w+) *## *\]\]")
_FENCE = re.compile(r"\A```\w*\s*\n(.*?)\n?```\s*\Z", re.DOTALL)
_LIST_ITEM = re.compile(r"\A(?:[-*•]|[0-9]+[.)])\s+")
_LIST_SEPARATOR = re.compile(r"\s*(?:->|→|>|,|;|\n)\s*")
_MARKUP = "*_`'\"\u201c\u201d\u2018\u2019\u00ab\u00bb\u2039\u203a\u201e \t\r\n"
_BRACKETS = ("()", "[]", "{}", "<>")
_NUMBER = re.compile(
    r"(?:about|approximately|approx\.?|around|~|≈)?\s*"
    r"(?P<number>[+-]?(?:[0-9]+(?:[.,][0-9]+)*|[.,][0-9]+)(?:e[+-]?[0-9]+)?)\s*"
    r"(?:(?P<percent>%|percent|per cent)|/\s*(?P<of>[0-9]+(?:\.[0-9]+)?))?"
    r"\s*(?:\([^()]*\))?\.?",
    re.IGNORECASE,
)
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")


def without_thoughts(text: str) -> str:
    """Return the text without a model's leading thoughts. If the thoughts do not end, nothing is left."""
    return _END_OF_THOUGHTS.sub("", _THOUGHTS.sub("", text)).strip()


def read_sections(completion: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Parse an answer in sections, each after `[[ ## name ## ]]`, or in JSON. `fields` maps names to types.

    Raises `ValueError` if a field is missing or its value does not have its type.
    """
    text = without_thoughts(completion)
    # Prefer headers at the start of a line, because the text may mention one inside a line.
    for texts in (_sections(text, at_line_start=True), _sections(text, at_line_start=False)):
        if fields.keys() <= texts.keys():
            return {name: read_value(texts[name], kind, name) for name, kind in fields.items()}
    if "{" in text:
        return read_json(text, fields)
    missing = ", ".join(name for name in fields if name not in texts)
    raise ValueError(f"no {missing} in it")


def read_json(completion: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Parse an answer in JSON, with or without surrounding text and code fences.

    Raises `ValueError` if a field is missing or its value does not have its type.
    """
    text = without_thoughts(completion)
    start, end = text.find("{"), text.rfind("}")
    try:
        data = json_repair.loads(text[start : end + 1] if end > start else text[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ValueError("no JSON object in it")
    if missing := ", ".join(name for name in fields if name not in data):
        raise ValueError(f"no {missing} in it")
    return {name: read_value(data[name], kind, name) for name, kind in fields.items()}


def read_value(value: Any, kind: Any, name: str = "") -> Any:
    """Convert a value to the type `kind` of an output field. Raises `ValueError` if that is not possible."""
    if get_origin(kind) is Literal and all(isinstance(label, str) for label in get_args(kind)):
        return read_label(value if isinstance(value, str) else str(value), get_args(kind), name)
    if get_origin(kind) is list and get_origin(item := get_args(kind)[0]) is Literal:
        return [read_value(element, item) for element in _items(value)]
    if kind in {int, float} and not isinstance(value, bool):
        number = read_number(value) if isinstance(value, str) else float(value)
        if not math.isfinite(number) or (kind is int and number != int(number)):
            raise ValueError(f"{value!r} is no {kind.__name__}")
        return kind(number)
    try:
        return parse_value(value, kind)
    except ValueError:
        raise
    except Exception as e:  # noqa: BLE001 - a type's own code may raise anything
        raise ValueError(str(e)) from None


def read_label(text: str, labels: Sequence[str], name: str = "") -> str:
    """Return the label that a text names. Raises `ValueError` if it names none, or may name two.

    Ignores case, `_` for spaces, markup, brackets, a full stop, a leading `name:` and a trailing `(description)`. A
    label on its own line may be followed by an explanation.
    """
    first_line = text.strip().partition("\n")[0]
    for candidate in (text, first_line):
        for bare in _bared(candidate, name):
            if bare in labels:
                return bare
            alike = [label for label in labels if _folded(label) == _folded(bare)]
            if len(alike) == 1:
                return alike[0]
    raise ValueError(f"{text[:60]!r} is none of the {len(labels)} labels")


def read_number(text: str) -> float:
    """Parse a number: `0.9`, `.9`, `0,9`, `90 %`, `9/10`, `about 0.9`, `1,000`. Raises `ValueError` for other text."""
    plain = unicodedata.normalize("NFKC", text).strip(_MARKUP).strip()
    match = _NUMBER.fullmatch(plain)
    if match is None:
        raise ValueError(f"{text[:60]!r} is no number")
    digits = match["number"]
    digits = digits.replace(",", "") if _THOUSANDS.fullmatch(digits) else digits.replace(",", ".")
    number = float(digits)  # rejects "1.2.3"
    if match["percent"]:
        return number / 100
    if match["of"]:
        if not float(match["of"]):
            raise ValueError(f"{text[:60]!r} is no number")
        return number / float(match["of"])
    return number


def _sections(text: str, *, at_line_start: bool) -> dict[str, str]:
    """Return the texts by the header before them. Of equal headers the first counts."""
    sections: dict[str, str] = {}
    headers = [
        header
        for header in _HEADER.finditer(text)
        if not at_line_start or not text[: header.start()].rpartition("\n")[2].strip(_MARKUP + "#")
    ]
    ends = [*(header.start() for header in headers[1:]), len(text)]
    for header, end in zip(headers, ends, strict=False):
        sections.setdefault(header[1], text[header.end() : end].strip())
    return sections


def _items(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    text = _unfenced(str(value))
    if text.startswith("["):
        try:
            listed = json.loads(text)
        except ValueError:
            listed = json_repair.loads(text)
        if isinstance(listed, list):
            return listed
    items = [_LIST_ITEM.sub("", line.strip()) for line in text.splitlines()]
    return [item for line in items for item in _LIST_SEPARATOR.split(line) if item]


def _unfenced(text: str) -> str:
    fenced = _FENCE.match(text.strip())
    return (fenced[1] if fenced else text).strip()


def _bared(text: str, name: str) -> list[str]:
    """Return variants of a text with less and less around it."""
    bared = [text, _unfenced(text)]
    if name:
        bared.append(re.sub(rf"\A\W*{re.escape(name)}\W*[:=]", "", bared[-1], flags=re.IGNORECASE))
    bared.append(bared[-1].strip(_MARKUP).rstrip(".!,;:").strip(_MARKUP))
    for opening, closing in _BRACKETS:
        if bared[-1].startswith(opening) and bared[-1].endswith(closing):
            bared.append(bared[-1][1:-1].strip(_MARKUP))
    bared.append(re.sub(r"\s*\([^()]*\)\Z", "", bared[-1]).strip(_MARKUP))
    return bared


def _folded(text: str) -> str:
    return re.sub(r"[\s_-]+", "_", unicodedata.normalize("NFKC", text).casefold()).strip("_")
