"""Forms made from a model: what their inputs show of a document, and what a filled-in form makes of it. Pure.

A document is what a tenant chose, as JSON knows it; an input that is empty follows the default. Inputs are named by
their path (`budget.max_lm_calls`, `agents.0.name`), and hold one text each, or several (`Texts`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from autoopt_pipeline.durations import as_written, holds_duration

Texts = Mapping[str, tuple[str, ...]]
Document = dict[str, Any]

REMOVE = ":remove"
"""Ends the name of a box that takes a row away."""

FOLLOW = ":default"
"""Ends the name of a box that takes away all that was chosen beneath a place."""

_LONG = 200
"""Characters. A text that may be longer gets an input of several lines."""

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?", re.ASCII)
"""What browsers show in an input for numbers; of anything else they would show nothing."""


class Kind(StrEnum):
    """What an input, or a group of inputs, is for."""

    TEXT = "text"
    NUMBER = "number"
    DURATION = "duration"
    MOMENT = "moment"
    CHOICE = "choice"
    CHOICES = "choices"
    LINES = "lines"
    FIELDS = "fields"
    ROWS = "rows"
    ENTRIES = "entries"


_SEVERAL = (Kind.CHOICES, Kind.LINES)
_GROUPS = (Kind.FIELDS, Kind.ROWS, Kind.ENTRIES)


@dataclass(frozen=True)
class Shape:
    """What a model says of a place. `members` are the fields of an object, of each row of a list, or of each entry
    under a key; `options` the values to choose from, or the known keys."""

    key: str
    kind: Kind
    description: str = ""
    default: Any = None
    required: bool = False
    options: tuple[str, ...] = ()
    members: "tuple[Shape, ...]" = ()
    schema: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def limits(self) -> Mapping[str, str]:
        """The attributes of an input that keep to the model's limits."""
        names = {"minimum": "min", "exclusiveMinimum": "min", "maximum": "max", "maxLength": "maxlength"}
        found = {names[name]: f"{value:.15g}" for name, value in self.schema.items() if name in names}
        if self.kind is Kind.NUMBER:
            found["step"] = "1" if self.schema.get("type") == "integer" else "any"
        return found

    @property
    def in_words(self) -> str:
        """The limits, for people."""
        least, most, above = (self._told(self.schema.get(name)) for name in ("minimum", "maximum", "exclusiveMinimum"))
        if above:
            return f"more than {above}" + (f", up to {most}" if most else "")
        if least:
            return f"{least} to {most}" if most else f"{least} or more"
        return f"up to {self.schema['maxLength']} characters" if "maxLength" in self.schema else ""

    def _told(self, limit: float | None) -> str:
        shown = as_written(self.key, limit)
        return "" if shown is None else shown if isinstance(shown, str) else f"{shown:,.15g}"


def shape_of(model: type[BaseModel], defaults: Document, keys: Mapping[str, Sequence[str]]) -> tuple[Shape, ...]:
    """The fields of a model. `defaults` hold what follows when a field is not chosen; `keys` the known keys of a field
    that holds entries under keys."""
    schema = model.model_json_schema()
    return _members(schema, schema.get("$defs", {}), defaults, keys)


def _members(
    schema: Mapping[str, Any], models: Mapping[str, Any], defaults: Document, keys: Mapping[str, Sequence[str]]
) -> tuple[Shape, ...]:
    return tuple(
        _shape(key, _resolved(each, models), models, defaults, key in schema.get("required", ()), keys)
        for key, each in schema["properties"].items()
    )


def _shape(
    key: str,
    schema: Mapping[str, Any],
    models: Mapping[str, Any],
    defaults: Document,
    required: bool,
    keys: Mapping[str, Sequence[str]],
) -> Shape:
    items = _resolved(schema.get("items", {}), models)
    each = _resolved(schema.get("additionalProperties") or {}, models)
    found = Shape(
        key,
        Kind.TEXT,
        description=schema.get("description", ""),
        default=defaults.get(key, schema.get("default")),
        required=required,
        options=tuple(schema.get("enum") or items.get("enum") or keys.get(key, ())),
        schema=schema,
    )
    for kind, holder in ((Kind.FIELDS, schema), (Kind.ROWS, items), (Kind.ENTRIES, each)):
        if "properties" in holder:
            return replace(found, kind=kind, members=_members(holder, models, {}, {}))
    match schema.get("type"):
        case "array":
            return replace(found, kind=Kind.CHOICES if found.options else Kind.LINES)
        case "boolean":
            return replace(found, kind=Kind.CHOICE, options=("true", "false"))
        case "integer" | "number":
            return replace(found, kind=Kind.DURATION if holds_duration(key) else Kind.NUMBER)
    if schema.get("format") == "date-time":
        return replace(found, kind=Kind.MOMENT)
    return replace(found, kind=Kind.CHOICE) if found.options else found


def _resolved(schema: Mapping[str, Any], models: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a place, without null beside it, and with the model that it names. What it says itself counts."""
    for other in schema.get("anyOf", ()):
        if other.get("type") != "null":
            schema = {**other, **schema}
    if "$ref" in schema:
        schema = {**models[schema["$ref"].rpartition("/")[2]], **schema}
    return schema


def shown(shapes: Sequence[Shape], document: Document, name: str = "") -> dict[str, tuple[str, ...]]:
    """What the inputs of a form show of a document."""
    return {each: texts for shape in shapes for each, texts in _shown(shape, document.get(shape.key), _at(name, shape))}


def _shown(shape: Shape, value: Any, name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    match shape.kind:
        case Kind.FIELDS:
            yield from shown(shape.members, value or {}, name).items()
        case Kind.ROWS:
            for index, row in enumerate(value or ()):
                yield from shown(shape.members, row, f"{name}.{index}").items()
        case Kind.ENTRIES:
            listed = _listed(shape, value)
            yield name, tuple(listed)
            for key in _keys(shape, listed):
                yield from shown(shape.members, listed.get(key, {}), f"{name}.{key}").items()
        case _:
            yield name, _texts(shape, value)


def _texts(shape: Shape, value: Any) -> tuple[str, ...]:
    if shape.kind is Kind.CHOICES:
        return tuple(option for option in shape.options if option in (value or ()))
    if shape.kind is Kind.LINES:
        return tuple(map(_as_sent, value or ()))
    return (as_text(shape, value),)


def as_text(shape: Shape, value: Any) -> str:
    """A single value as an input shows it; nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if shape.kind is Kind.DURATION:
        return str(as_written(shape.key, value))
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if shape.kind is Kind.MOMENT:
        moment = datetime.fromisoformat(value).astimezone(UTC).replace(tzinfo=None)
        # As browsers show it: no seconds where there are none.
        return moment.isoformat(timespec="seconds" if moment.second else "minutes")
    return _as_sent(str(value))


def _as_sent(text: str) -> str:
    """Text as it comes back out of an input, whatever its line ends were."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def _listed(shape: Shape, value: Any) -> Document:
    """The entries under keys: those that were chosen, or those of the default, of which nothing is chosen."""
    return value if value is not None else {key: {} for key in shape.default or ()}


def _keys(shape: Shape, listed: Mapping[str, Any]) -> list[str]:
    return [*listed, *(key for key in shape.options if key not in listed)]


def _at(name: str, shape: Shape) -> str:
    return f"{name}.{shape.key}" if name else shape.key


def _typed(shape: Shape, posted: Texts, name: str) -> tuple[str, ...] | None:
    """What was typed into an input; None where the form did not have it."""
    texts = posted.get(name)
    if texts is None:
        return None
    if shape.kind is Kind.LINES:
        return tuple(line.strip() for text in texts for line in _as_sent(text).split("\n") if line.strip())
    if shape.kind in (*_SEVERAL, Kind.ENTRIES):
        return tuple(text for text in texts if text)
    text = _as_sent(texts[-1]) if texts else ""
    return (text if shape.kind is Kind.TEXT else text.strip(),)


def _is_new(shape: Shape, typed: tuple[str, ...] | None, before: tuple[str, ...]) -> bool:
    """Whether something else was typed than what the input showed."""
    if typed is None:
        return False
    return set(typed) != set(before) if shape.kind is Kind.ENTRIES else typed != before


@dataclass(frozen=True)
class Filled:
    """What a filled-in form makes of a document, not checked yet: new values are the texts as they were typed.
    `names` are those of the inputs by their places in the document."""

    document: Document
    names: Mapping[tuple[int | str, ...], str]

    def errors(self, wrong: Mapping[tuple[int | str, ...], str]) -> dict[str, str]:
        """What is wrong, by the input, or the group, that it is to be told at; "" is the whole form."""
        found: dict[str, str] = {}
        for place, what in wrong.items():
            while place and place not in self.names:
                place = place[:-1]
            found.setdefault(self.names.get(place, ""), what)
        return found


def fill(shapes: Sequence[Shape], document: Document, posted: Texts) -> Filled:
    """Change in a document what was changed in its form. What is not in the form, or as it was shown, stays."""
    filling = _Filling(posted)
    return Filled(filling.fields(shapes, document, "", ()), filling.names)


class _Filling:
    def __init__(self, posted: Texts) -> None:
        self._posted = posted
        self.names: dict[tuple[int | str, ...], str] = {}

    def fields(self, shapes: Sequence[Shape], before: Document, name: str, place: tuple[int | str, ...]) -> Document:
        found = dict(before)
        for shape in shapes:
            self._change(shape, found, _at(name, shape), (*place, shape.key))
        return found

    def _change(self, shape: Shape, found: Document, name: str, place: tuple[int | str, ...]) -> None:
        """Choose a field anew, or let it follow its default, where its inputs say so."""
        self.names[place] = name
        before = found.get(shape.key)
        after: Any
        match shape.kind:
            case Kind.FIELDS:
                after = self.fields(shape.members, before or {}, name, place)
                changed = after != (before or {})
            case Kind.ROWS:
                after = self._rows(shape, before or [], name, place)
                changed = after != (before or [])
            case Kind.ENTRIES:
                listed = _listed(shape, before)
                after = self._entries(shape, listed, name, place)
                changed = after != listed
                if f"{name}{FOLLOW}" in self._posted:
                    found.pop(shape.key, None)
                    return
            case _:
                typed = _typed(shape, self._posted, name)
                changed = _is_new(shape, typed, _texts(shape, before))
                after = _value(shape, typed or ())
        if not changed:
            return
        if after or shape.kind is Kind.ENTRIES:
            found[shape.key] = after
        else:
            found.pop(shape.key, None)

    def _rows(self, shape: Shape, before: list[Document], name: str, place: tuple[int | str, ...]) -> list[Document]:
        rows: list[Document] = []
        for index in sorted({*range(len(before)), *_indices(self._posted, name)}):
            if f"{name}.{index}{REMOVE}" in self._posted:
                continue
            old = before[index] if index < len(before) else {}
            here = (*place, len(rows))
            self.names[here] = f"{name}.{index}"
            row = self.fields(shape.members, old, f"{name}.{index}", here)
            if row or index < len(before):
                rows.append(row)
        return rows

    def _entries(self, shape: Shape, listed: Document, name: str, place: tuple[int | str, ...]) -> Document:
        typed = _typed(shape, self._posted, name)
        wanted = listed if typed is None else typed
        found = {}
        for key in _keys(shape, listed):
            self.names[(*place, key)] = f"{name}.{key}"
            entry = self.fields(shape.members, listed.get(key, {}), f"{name}.{key}", (*place, key))
            # Choosing something of an entry that was not listed lists it.
            if key in wanted or (entry and key not in listed):
                found[key] = entry
        return found


def _value(shape: Shape, typed: tuple[str, ...]) -> Any:
    if shape.kind in _SEVERAL:
        return list(typed)
    text = typed[-1] if typed else ""
    if shape.kind is Kind.MOMENT and text:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return text
        return moment.isoformat() if moment.tzinfo else f"{moment.isoformat()}Z"
    return text


def _indices(texts: Texts, name: str) -> set[int]:
    row = re.compile(re.escape(name) + r"\.([0-9]{1,5})\.")
    return {int(found[1]) for each in texts if (found := row.match(each))}


def rebased(shapes: Sequence[Shape], base: Document, newest: Document, posted: Texts) -> dict[str, tuple[str, ...]]:
    """What was changed in a form made from `base`, as inputs of a form made from `newest`, which may be the same.

    Nothing that others changed meanwhile is undone: of lists only what was added and taken away is carried over, and a
    row that others changed, too, becomes a new row beside theirs.
    """
    before, now = shown(shapes, base), shown(shapes, newest)
    return dict(_rebased(shapes, (base, before), (newest, now), posted, ""))


_Side = tuple[Document, Texts]


def _rebased(
    shapes: Sequence[Shape], base: _Side, newest: _Side, posted: Texts, name: str
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for shape in shapes:
        here = _at(name, shape)
        old, new = base[0].get(shape.key), newest[0].get(shape.key)
        if shape.kind is Kind.FIELDS:
            yield from _rebased(shape.members, (old or {}, base[1]), (new or {}, newest[1]), posted, here)
            continue
        if shape.kind is Kind.ROWS:
            yield from _rebased_rows(shape, old or [], new or [], posted, here)
            continue
        typed, before = _typed(shape, posted, here), base[1].get(here, ("",))
        if typed is not None and _is_new(shape, typed, before):
            if shape.kind in (*_SEVERAL, Kind.ENTRIES):
                kept = [text for text in newest[1].get(here, ()) if text in typed or text not in before]
                typed = tuple(dict.fromkeys((*kept, *(text for text in typed if text not in before))))
            yield here, typed
        if shape.kind is Kind.ENTRIES:
            if f"{here}{FOLLOW}" in posted:
                yield f"{here}{FOLLOW}", ("1",)
            olds, news = _listed(shape, old), _listed(shape, new)
            for key in _keys(shape, {**news, **olds}):
                sides = (olds.get(key, {}), base[1]), (news.get(key, {}), newest[1])
                yield from _rebased(shape.members, *sides, posted, f"{here}.{key}")


def _rebased_rows(
    shape: Shape, base: list[Document], newest: list[Document], posted: Texts, name: str
) -> Iterator[tuple[str, tuple[str, ...]]]:
    free = len(newest)
    for index in sorted({*range(len(base)), *_indices(posted, name)}):
        here = f"{name}.{index}"
        before = shown(shape.members, base[index] if index < len(base) else {})
        typed = {each.key: _typed(each, posted, f"{here}.{each.key}") for each in shape.members}
        new = {each.key for each in shape.members if _is_new(each, typed[each.key], before[each.key])}
        removed = f"{here}{REMOVE}" in posted
        if not new and not removed:
            continue
        same = index < len(base) and [i for i, row in enumerate(newest) if row == base[index]]
        if same:
            target = index if index in same else same[0]
        elif new:
            target, free, new, removed = free, free + 1, set(typed), False
        else:
            continue  # what was to be taken away is gone already, or is another row by now
        yield from ((f"{name}.{target}.{key}", typed[key] or before[key]) for key in new)
        if removed:
            yield f"{name}.{target}{REMOVE}", ("1",)


@dataclass(frozen=True)
class Input:
    """An input as it is to be shown. `chosen` is whether the document has a value of its own."""

    shape: Shape
    name: str
    texts: tuple[str, ...]
    chosen: bool
    error: str = ""

    @property
    def is_wrong(self) -> bool:
        return bool(self.error)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    @property
    def default(self) -> str:
        """What holds where nothing is chosen; "" where there is nothing to tell."""
        value = self.shape.default
        return ", ".join(map(str, value)) if isinstance(value, list | dict) else as_text(self.shape, value)

    @property
    def is_long(self) -> bool:
        long = self.shape.schema.get("maxLength", 0) > _LONG or "\n" in self.text
        return self.shape.kind is Kind.LINES or (self.shape.kind is Kind.TEXT and long)

    @property
    def is_number(self) -> bool:
        """Whether a browser's input for numbers can show it."""
        return self.shape.kind is Kind.NUMBER and (not self.text or bool(_NUMBER.fullmatch(self.text)))

    @property
    def is_moment(self) -> bool:
        """Whether a browser's input for dates can show it."""
        try:
            return self.shape.kind is Kind.MOMENT and (not self.text or not datetime.fromisoformat(self.text).tzinfo)
        except ValueError:
            return False


@dataclass(frozen=True)
class Group:
    """Inputs that belong together. A row, or an entry under a key, is a group of its own; `label` tells which."""

    shape: Shape
    name: str
    label: str
    chosen: bool
    parts: "tuple[Input | Group, ...]"
    error: str = ""
    removed: bool = False

    @property
    def is_wrong(self) -> bool:
        """Whether something in it is."""
        return bool(self.error) or any(each.is_wrong for each in self.parts)


def form(
    shapes: Sequence[Shape],
    document: Document,
    texts: Texts,
    errors: Mapping[str, str] | None = None,
    name: str = "",
) -> tuple[Input | Group, ...]:
    """The inputs to show; `texts` is what they hold, by name, and `document` what is chosen."""
    return tuple(_part(shape, document, texts, errors or {}, _at(name, shape)) for shape in shapes)


def _part(shape: Shape, document: Document, texts: Texts, errors: Mapping[str, str], name: str) -> Input | Group:
    chosen, value, error = shape.key in document, document.get(shape.key), errors.get(name, "")
    if shape.kind not in _GROUPS:
        return Input(shape, name, texts.get(name, ("",)), chosen, error)
    parts: tuple[Input | Group, ...]
    if shape.kind is Kind.FIELDS:
        parts = form(shape.members, value or {}, texts, errors, name)
    elif shape.kind is Kind.ROWS:
        parts = tuple(_rows(shape, value or [], texts, errors, name))
    else:
        parts = tuple(_entries(shape, _listed(shape, value), texts, errors, name))
    removed = any(f"{name}{mark}" in texts for mark in (REMOVE, FOLLOW))
    return Group(shape, name, shape.key, chosen, parts, error, removed)


def _rows(
    shape: Shape, rows: list[Document], texts: Texts, errors: Mapping[str, str], name: str
) -> Iterator[Input | Group]:
    """The rows, and one more that is empty."""
    count = max(len(rows), *(index + 1 for index in _indices(texts, name)), 0) + 1
    for index in range(count):
        here = f"{name}.{index}"
        row = rows[index] if index < len(rows) else {}
        label = "one more" if index + 1 == count else str(index + 1)
        parts = form(shape.members, row, texts, errors, here)
        yield Group(shape, here, label, index < len(rows), parts, errors.get(here, ""), f"{here}{REMOVE}" in texts)


def _entries(
    shape: Shape, entries: Document, texts: Texts, errors: Mapping[str, str], name: str
) -> Iterator[Input | Group]:
    """Which are listed, and the fields of each."""
    options = tuple(_keys(shape, entries))
    listing = Shape("listed", Kind.CHOICES, "Choosing something of one lists it, too.", options=options)
    yield Input(listing, name, texts.get(name, ()), chosen=False)
    for key in listing.options:
        here = f"{name}.{key}"
        parts = form(shape.members, entries.get(key, {}), texts, errors, here)
        yield Group(shape, here, key, key in entries, parts, errors.get(here, ""))


def inputs(parts: Sequence[Input | Group]) -> Iterator[Input]:
    """All inputs of a form that hold a single value and stand in no list."""
    for part in parts:
        if isinstance(part, Input) and part.shape.kind not in _SEVERAL:
            yield part
        elif isinstance(part, Group) and part.shape.kind is not Kind.ROWS:
            yield from inputs(part.parts)


def wrong_names(parts: Sequence[Input | Group]) -> Iterator[str]:
    """The names of the inputs and groups that something is wrong with, from top to bottom."""
    for part in parts:
        if part.error:
            yield part.name
        if isinstance(part, Group):
            yield from wrong_names(part.parts)
