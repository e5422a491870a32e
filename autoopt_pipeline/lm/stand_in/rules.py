"""Rules that the stand-in reads in instructions and writes into them: a phrase of the query speaks for a value."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autoopt_pipeline.lm.stand_in.prompt import words

Value = str | tuple[str, ...]
"""What a field is: a text, or a list field's items."""

_RULE = re.compile(r'^If the query mentions "([^"]+)", then (\w+) is (".*"|\[.*\])\.$')


@dataclass(frozen=True)
class Rule:
    """If the query has `phrase`, that is evidence for `field` being `value`."""

    phrase: str
    field: str
    value: Value

    def __str__(self) -> str:
        value = json.dumps(self.value, ensure_ascii=False)
        return f'If the query mentions "{self.phrase}", then {self.field} is {value}.'

    def holds_in(self, asked: Sequence[str]) -> bool:
        """Whether the phrase stands in these words, as whole words in a row."""
        return f" {' '.join(words(self.phrase))} " in f" {' '.join(asked)} "


def parse_rule(line: str) -> Rule | None:
    """The rule that a line of instructions states, or None."""
    found = _RULE.match(line.strip())
    value = parse_value(found[3]) if found else None
    return Rule(found[1], found[2], value) if found and value is not None else None


def parse_value(written: str) -> Value | None:
    """A value written as JSON, or None if it is none."""
    try:
        return as_value(json.loads(written))
    except ValueError:
        return None


def as_value(value: Any) -> Value:
    return tuple(map(str, value)) if isinstance(value, list) else str(value)


def rules_in(instructions: str) -> Iterator[Rule]:
    """The rules among the lines of instructions, in their order."""
    return (rule for rule in map(parse_rule, instructions.splitlines()) if rule)
