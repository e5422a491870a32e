"""Detects texts that an attribute length limit truncated before they reached Phoenix.

OpenTelemetry truncates without a mark, and an application's limit is not known here. There are two signs: JSON that
ends in the middle, and several different texts of the same length with none longer, if that length is a typical limit.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.span_contract import SpanContract

# Start of objects and lists that applications write. People rarely type that.
_JSON = re.compile(r'\s*(?:\{\s*"|\[\s*["\[{])')

# What a JSON parser stops at if the text ends too soon: nothing, a number, or an incomplete word.
_UNFINISHED = re.compile(r"\s*(?:[-+.eE\d]*|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?)\s*")

_ROUND = re.compile(r"(?:1|2|25|3|4|5|6|8|10|12|15|20)0+")
# Different texts of one length that indicate a limit.
_MIN_CUT = 3

# Number of lengths below a limit to compare with; truncation makes the limit's length stand out.
_NEAR = 8


def mark_cut(decisions: Sequence[LoggedDecision], contract: SpanContract) -> list[LoggedDecision]:
    """Return the decisions of one window, each with the names of its truncated attributes."""
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
    except (ValueError, RecursionError):  # endless numbers or brackets
        return False
    return False


def _of_length(decision: LoggedDecision, limits: set[int]) -> frozenset[str]:
    return frozenset(
        name for name, text in decision.attributes.items() if isinstance(text, str) and len(text) in limits
    )


def _piled_up(texts: Iterable[str]) -> set[int]:
    """Return the length of the longest texts if it appears to be a limit, else nothing."""
    counts = Counter(len(text) for text in set(texts))
    longest = max(counts, default=0)
    near = sum(counts[longest - less] for less in range(1, _NEAR + 1))
    return {longest} if _is_chosen(longest) and counts[longest] >= max(_MIN_CUT, near + 1) else set()


def _is_chosen(length: int) -> bool:
    """Return whether a length is a typical limit: a power of two from 32 on, or one less, or a round number."""
    power = any(number >= 32 and number & (number - 1) == 0 for number in (length, length + 1))
    return power or (length >= 100 and _ROUND.fullmatch(str(length)) is not None)
