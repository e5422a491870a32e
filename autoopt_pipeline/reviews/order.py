"""The order in which drawn traces are reviewed."""

from collections.abc import Sequence
from itertools import islice

from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.registry.records import DrawnTrace

# Like answers that are reviewed, too, drawn at random: they show how often both programs are wrong in the same way.
AUDITED = 15

# Disagreements before each of them.
_AUDIT_EVERY = 8


def in_order(traces: Sequence[DrawnTrace], *, seed: str) -> list[DrawnTrace]:
    """Return the traces in random order: the disagreements, a few like answers in between, and the others at the end.

    The order must not depend on the answers. Otherwise somebody who stops early would see a biased part of them.
    """
    shuffled = sorted(traces, key=lambda trace: unit_interval(f"{seed} {trace.span_id}"))
    different = [trace for trace in shuffled if not trace.alike]
    alike = iter([trace for trace in shuffled if trace.alike])
    ordered: list[DrawnTrace] = []
    for place, trace in enumerate(different, 1):
        ordered.append(trace)
        if place % _AUDIT_EVERY == 0 and place // _AUDIT_EVERY <= AUDITED:
            ordered += islice(alike, 1)
    return [*ordered, *alike]


def to_review(traces: Sequence[DrawnTrace]) -> list[DrawnTrace]:
    """Return those of the ordered traces that people are asked about: up to the last disagreement among them."""
    asked = [trace for trace in traces if trace.is_asked]
    last = max((place for place, trace in enumerate(asked, 1) if not trace.alike), default=0)
    return asked[:last]
