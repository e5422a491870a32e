"""Reads the prompts of DSPy's chat and JSON adapters: output fields, demos and the query.

The wording is DSPy's, and a contract test compares what is read here with what DSPy was given.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

# A quoted label may contain anything, including brackets and colons.
_FIELD = re.compile(r"""^\d+\. `(\w+)` \(((?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^'"\n])+?)\):""", re.MULTILINE)
_SECTION = re.compile(r"^\[\[ ## (\w+) ## \]\]$", re.MULTILINE)
_REQUEST = re.compile(r"\n\nRespond with (?:the corresponding output fields|a JSON object)")
_STRUCTURE = "All interactions will be structured"
_OBJECTIVE = "In adhering to this structure, your objective is:"
_NOT_SUPPLIED = "Not supplied for this particular example."


@dataclass(frozen=True)
class Output:
    """An output field. If its type names the possible values (or the possible items of a list), `allowed` has them."""

    name: str
    type: str
    allowed: tuple[str, ...]
    is_list: bool

    def read(self, shown: str) -> str | None:
        """The value as an answer spells it, so that equal values are equal texts. None if the value is not allowed."""
        if not self.is_list:
            return shown if shown in self.allowed else None
        try:
            items = json.loads(shown)
        except ValueError:
            return None
        if not isinstance(items, list) or not all(str(item) in self.allowed for item in items):
            return None
        return json.dumps(items, ensure_ascii=False)


@dataclass(frozen=True)
class Demo:
    """An answered example in the prompt: texts by field name."""

    inputs: Mapping[str, str]
    answers: Mapping[str, str]


def read_outputs(system: str) -> Iterator[Output]:
    """The output fields, in the order of the prompt."""
    _, _, described = system.partition("Your output fields are:")
    for name, kind in _FIELD.findall(described.partition(_STRUCTURE)[0]):
        is_list = kind.startswith("list[Literal[")
        literal = kind[len("list[") : -1] if is_list else kind
        allowed: tuple[str, ...] = ()
        if literal.startswith("Literal["):
            allowed = tuple(str(value) for value in ast.literal_eval(literal.removeprefix("Literal")))
        yield Output(name, kind, allowed, is_list)


def wants_json(system: str) -> bool:
    """Whether the prompt asks for one JSON object, as DSPy's JSONAdapter does."""
    return "Outputs will be a JSON object" in system.partition(_OBJECTIVE)[0]


def read_demos(turns: Sequence[tuple[str, str]]) -> Iterator[Demo]:
    """The demos in a conversation of (role, text) turns."""
    for (role, asked), (_, answered) in pairwise(turns):
        if role == "user":
            shown = _json_fields(answered) if answered.startswith("{") else _sections(answered)
            answers = {name: text for name, text in shown.items() if not text.startswith(_NOT_SUPPLIED)}
            yield Demo(read_inputs(asked), answers)


def read_inputs(text: str) -> dict[str, str]:
    """The input fields in a turn of the user, without empty fields."""
    requests = list(_REQUEST.finditer(text))
    # The adapter wrote the last one. An input may contain others.
    asked = text[: requests[-1].start()] if requests else text
    return {name: value for name, value in _sections(asked).items() if value and value != "None"}


def words(text: str) -> list[str]:
    """The words of a text in lower case, split at punctuation and at '_'."""
    return re.findall(r"[^\W_]+", text.lower())


def _sections(text: str) -> dict[str, str]:
    parts = _SECTION.split(text)
    return {name: value.strip() for name, value in zip(parts[1::2], parts[2::2], strict=False)}


def _json_fields(text: str) -> dict[str, str]:
    try:
        fields = json.loads(text)
    except ValueError:
        return {}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
