"""DSPy's chat format, with the demos formatted once instead of at every call."""

from typing import Any

import dspy

_KEPT = 8


class DemoCachingAdapter(dspy.ChatAdapter):
    """A `ChatAdapter` that keeps the formatted demos of the last few prompts.

    Formatting demos is most of DSPy's own cost per call (57 of 66 points with 16 demos), and an evaluation
    asks hundreds of queries with the same ones. Demos must not be changed in place meanwhile.
    """

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)
        self._formatted: dict[tuple[Any, ...], tuple[list[Any], list[dict[str, Any]]]] = {}

    def format_demos(self, signature: Any, demos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        key = (id(signature), *(id(demo) for demo in demos))
        kept = self._formatted.get(key)
        if kept is None:
            while len(self._formatted) >= _KEPT:
                self._formatted.pop(next(iter(self._formatted)), None)
            # The objects are kept too, so that their ids are not given to others.
            kept = ([signature, *demos], super().format_demos(signature, demos))
            self._formatted[key] = kept
        return list(kept[1])
