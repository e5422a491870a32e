"""Finding texts that a limit on the length of attributes has cut before they came to Phoenix.

OpenTelemetry cuts without leaving a mark, and which limit an application has is not known here. Two things give it
away: JSON that ends in the middle, and several different texts of the same length with none longer, where that is a
length that people choose.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.span_contract import SpanContract

_JSON = re.compile(r'\s*(?:\{\s*"|\[\s*["\[{])')
"""How objects and lists begin that applications write. What a person types is mostly none."""

_UNFINISHED = re.compile(r"\s*(?:[-+.eE\d]*|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?)\s*")
"""What JSON stumbles over where it ends too soon: nothing, a number, or a word that is not complete."""

_ROUND = re.compile(r"(?:1|2|25|3|4|5|6|8|10|12|15|20)0+")
_MIN_CUT = 3
"""Different texts of one length that make a limit of it."""

_NEAR = 8
"""Lengths below a limit with which texts of the limit's length are compared: there a cut pile stands out."""


def mark_cut(decisions: Sequence[LoggedDecision], contract: SpanContract) -> list[LoggedDecision]:
    """The decisions of one window, with the names of their attributes whose text was cut."""
    broken = {decision.span_id: _ending_in_the_middle(decision) for decision in decisions}
    limits = {len(decision.attributes[name]) for decision in decisions for name in broken[decision.span_id]}
    names = {path.partition(":")[0] for paths in contract.inputs.values() for path in paths}
    limits |= _piled_up(
        text for decision in decisions for name in names if isinstance(text := decision.attributes.get(name), str)
    )
    if not limits:
        return list(decisions)
    return [replace(decision, cut=broken[decision.span_id] | _of_length(decision, limits)) for decision in decisions]


def _ending_in_the_middle(decision: LoggedDecision) -> frozenset[str]:
    return frozenset(
        name for name, text in decision.attributes.items() if isinstance(text, str) and _ends_in_the_middle(text)
    )


def _ends_in_the_middle(text: str) -> bool:
    if not _JSON.match(text):
        return False
    try:
        json.loads(text)
    except json.JSONDecodeError as e:
        at_an_escape = e.msg.startswith("Invalid \\uXXXX") and len(text) - e.pos < len("\\uXXXX")
        return e.msg.startswith("Unterminated") or at_an_escape or _UNFINISHED.fullmatch(text, e.pos) is not None
    except (ValueError, RecursionError):  # numbers, or brackets, without end
        return False
    return False


def _of_length(decision: LoggedDecision, limits: set[int]) -> frozenset[str]:
    return frozenset(
        name for name, text in decision.attributes.items() if isinstance(text, str) and len(text) in limits
    )


def _piled_up(texts: Iterable[str]) -> set[int]:
    """The length of the longest texts, where it looks like a limit."""
    counts = Counter(len(text) for text in set(texts))
    longest = max(counts, default=0)
    near = sum(counts[longest - less] for less in range(1, _NEAR + 1))
    return {longest} if _is_chosen(longest) and counts[longest] >= max(_MIN_CUT, near + 1) else set()


def _is_chosen(length: int) -> bool:
    """Whether a length is one that limits have: a power of two from 32 on, perhaps less one, or a round number."""
    power = any(number >= 32 and number & (number - 1) == 0 for number in (length, length + 1))
    return power or (length >= 100 and _ROUND.fullmatch(str(length)) is not None)
