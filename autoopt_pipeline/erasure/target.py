"""What is to be erased, and how its text is recognized."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autoopt_pipeline.modules.similarity import normalize_query, quotes


@dataclass(frozen=True)
class ErasureTarget:
    """Traces to erase: their ids, their spans, and their queries as they were asked and as redaction leaves them.

    `spans_known` is false if the spans of a trace are not known, because Phoenix does not have it any more.
    """

    span_ids: frozenset[str]
    queries: frozenset[str]
    spans_known: bool = True
    trace_ids: frozenset[str] = frozenset()

    @cached_property
    def _normalized(self) -> frozenset[str]:
        return frozenset(normalize_query(query) for query in self.queries)

    def includes_demo(self, demo: Any, source: str | None) -> bool:
        """Whether a demo came from one of the traces. Where spans cannot tell, its text decides."""
        if source in self.span_ids:
            return True
        return (source is None or not self.spans_known) and self.is_in(demo)

    def is_in(self, value: Any) -> bool:
        """Whether a value, or the values of a mapping or list taken together, quote a query; a short one as a whole."""
        texts = list(_texts(value))
        joined = " ".join(texts)
        return not self._normalized.isdisjoint(map(normalize_query, texts)) or any(
            quotes(joined, query) for query in self._normalized
        )

    def is_in_raw(self, raw: str) -> bool:
        """Whether a query of any length is in a text that has no structure to go by."""
        words = f" {normalize_query(raw)} "
        return any(f" {query} " in words or quotes(raw, query) for query in self._normalized)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = value.values()
    elif isinstance(value, str) or not isinstance(value, Iterable):
        yield str(value)
        return
    for part in value:
        yield from _texts(part)
