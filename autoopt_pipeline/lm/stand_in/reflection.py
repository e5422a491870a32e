"""How the stand-in writes instructions for DSPy's optimizers: the present ones, with rules out of the feedback.

It answers two prompts: that of GEPA (`current_instruction` and `examples_with_feedback` to `new_instruction`),
and that of MIPROv2 (`basic_instruction` to `proposed_instruction`), which it returns as it is.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoopt_pipeline.lm.stand_in.prompt import words
from autoopt_pipeline.lm.stand_in.rules import Rule, Value, as_value, parse_rule, parse_value

MAX_RULES = 40
"""Rules of one instruction; the oldest drop out."""

_RULES_PER_EXAMPLE = 3
"""Rules that one wrong answer leads to: some of its words are about the matter only by chance."""

_WRONG = re.compile(r'Wrong: (\w+) is (?:.*?), right is ("(?:[^"\\]|\\.)*"|\[.*?\])\.(?=\s|$)')
_SMALL_WORDS = frozenset(
    words(
        "about all and any are but can could did does for from get got had has have her him his how its just like need "
        "not now off one our out please she should some thanks that the their them then there these they this those "
        "too was were what when where which who why will with would you your"
    )
)
"""Words that hardly ever tell one request from another."""


@dataclass(frozen=True)
class _Shown:
    """An example of the prompt: its telling words in order, each field's right value, and the fields that were wrong.

    A field that the feedback does not name was right.
    """

    asked: tuple[str, ...]
    right: Mapping[str, Value]
    wrong: frozenset[str]


def propose(wanted: Collection[str], inputs: Mapping[str, str]) -> dict[str, str]:
    """The instructions among the wanted output fields; empty for prompts that ask for none."""
    if "proposed_instruction" in wanted and "basic_instruction" in inputs:
        return {"proposed_instruction": inputs["basic_instruction"]}
    if "new_instruction" in wanted and "examples_with_feedback" in inputs:
        examples = json.loads(inputs["examples_with_feedback"])
        return {"new_instruction": with_rules(inputs.get("current_instruction", ""), examples)}
    return {}


def with_rules(instruction: str, examples: Sequence[Mapping[str, Any]]) -> str:
    """The instruction with rules for the examples that were answered wrongly, and without those they contradict."""
    lines = instruction.splitlines()
    shown = list(_read(examples))
    rules = {(rule.phrase, rule.field): rule for rule in map(parse_rule, lines) if rule}
    rules = {key: rule for key, rule in rules.items() if not any(_contradicts(example, rule) for example in shown)}
    for rule in _mined(shown, list(rules.values())):
        rules.pop((rule.phrase, rule.field), None)  # a rule found again is a new one
        rules[rule.phrase, rule.field] = rule
    text = "\n".join(line for line in lines if not parse_rule(line)).strip()
    return "\n".join([text, *map(str, list(rules.values())[-MAX_RULES:])])


def _read(examples: Sequence[Mapping[str, Any]]) -> Iterator[_Shown]:
    inputs = [{name: _text(value) for name, value in example["Inputs"].items()} for example in examples]
    # What all examples share, such as a list of the agents, tells nothing; nor do its words elsewhere.
    shared = set.intersection(*(set(given.items()) for given in inputs)) if len(inputs) > 1 else set()
    common = {word for _, text in shared for word in words(text)}
    for example, given in zip(examples, inputs, strict=True):
        feedback = example["Feedback"]
        named = {field: parse_value(written) for field, written in _WRONG.findall(feedback)}
        corrected = {field: value for field, value in named.items() if value is not None}
        if not corrected and not feedback.startswith("Right."):
            continue
        asked = tuple(word for text in given.values() for word in words(text) if word not in common)
        answered = {field: as_value(value) for field, value in example["Generated Outputs"].items()}
        yield _Shown(asked, {**answered, **corrected}, frozenset(corrected))


def _contradicts(example: _Shown, rule: Rule) -> bool:
    return example.right.get(rule.field, rule.value) != rule.value and rule.holds_in(example.asked)


def _mined(shown: Sequence[_Shown], known: Sequence[Rule]) -> Iterator[Rule]:
    for example in shown:
        for field in sorted(example.wrong):
            value = example.right[field]
            elsewhere = {word for other in shown if other.right.get(field) != value for word in other.asked}
            elsewhere |= {rule.phrase for rule in known if rule.field == field and rule.value != value}
            with_it = Counter(word for other in shown if other.right.get(field) == value for word in set(other.asked))
            telling = dict.fromkeys(word for word in example.asked if _may_tell(word) and word not in elsewhere)
            best = sorted(telling, key=lambda word: -with_it[word])[:_RULES_PER_EXAMPLE]
            yield from (Rule(word, field, value) for word in best)


def _may_tell(word: str) -> bool:
    # Numbers are somebody's, and one letter is nobody's.
    return len(word) > 2 and word.isalpha() and word not in _SMALL_WORDS


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
