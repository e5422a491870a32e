"""Scored answers of two programs to the same example."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredAnswer:
    """One program's answer to one example.

    `score` is 0 to 1. `label` is the class of the answer, None for an invalid answer (score 0). `confidence`, 0 to 1,
    is the program's own estimate, None if it gave none.
    """

    score: float
    label: str | None
    confidence: float | None


@dataclass(frozen=True)
class PairedCase:
    """One held-out example answered by both programs; `label` is the class of its right answer."""

    label: str
    incumbent: ScoredAnswer
    candidate: ScoredAnswer

    @property
    def difference(self) -> float:
        """The candidate's gain on this case, -1 to 1."""
        return self.candidate.score - self.incumbent.score

    @property
    def fixed(self) -> bool:
        return self.candidate.score > self.incumbent.score

    @property
    def broken(self) -> bool:
        return self.candidate.score < self.incumbent.score
