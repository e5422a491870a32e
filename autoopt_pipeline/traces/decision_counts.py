"""Reads how many decisions applications say that they made. It is untrusted, and a hint.

Whoever may write spans can make numbers up, and so have Phoenix asked about a tenant early, or up to an hour late.
"""

import logging
from collections import Counter
from collections.abc import Collection
from datetime import datetime
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from autoopt_pipeline.span_contract import COUNTS, COUNTS_PROJECT, COUNTS_SPAN, TENANTS_PER_COUNTS_SPAN
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.validation import first_error

logger = logging.getLogger(__name__)

_LONGEST = 100_000
"""Characters of the numbers in one span."""

_Count = Annotated[int, Field(strict=True, gt=0, le=10**9)]
_Counts = Annotated[
    dict[str, Annotated[dict[str, _Count], Field(max_length=100)]], Field(max_length=TENANTS_PER_COUNTS_SPAN)
]
_COUNTS = TypeAdapter(_Counts)


def read_decision_counts(
    phoenix: Phoenix, *, start: datetime, end: datetime, but: Collection[str]
) -> tuple[dict[str, Counter[str]], frozenset[str]]:
    """Read what was told in [start, end), without the spans in `but`: decisions by tenant and name of their span.

    Returns also the ids of all spans in that time. Damaged ones are skipped, with one line in the log.
    """
    spans = phoenix.attributes_of(COUNTS_PROJECT, COUNTS_SPAN, start=start, end=end)
    counts: dict[str, Counter[str]] = {}
    damaged: list[str] = []
    for span_id, attributes in spans.items():
        if span_id in but:
            continue
        try:
            told = _read(attributes)
        except ValueError as e:
            damaged.append(f"{span_id}: {e}")
            continue
        for tenant, numbers in told.items():
            counts.setdefault(tenant, Counter()).update(numbers)
    if damaged:
        logger.warning(
            "%s of %s counts of decisions are skipped, first of span %s", len(damaged), len(spans), damaged[0]
        )
    return counts, frozenset(spans)


def _read(attributes: object) -> dict[str, dict[str, int]]:
    """Raises `ValueError` for anything but numbers by tenant and name, of a limited size."""
    for name in COUNTS.split("."):
        attributes = attributes.get(name) if isinstance(attributes, dict) else None
    if not isinstance(attributes, str) or len(attributes) > _LONGEST:
        raise ValueError(f"{COUNTS} is no text of up to {_LONGEST} characters")
    try:
        return _COUNTS.validate_json(attributes)
    except ValidationError as e:
        raise ValueError(first_error(e)) from None
