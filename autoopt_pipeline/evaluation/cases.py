"""What is compared: the answers of two programs to the same example."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoredAnswer:
    """One program's answer to one example.

    `score` is 0 to 1; `label` is the class that the answer amounts to, None where it was no valid answer (score 0);
    `confidence`, 0 to 1, is what the program said of itself, None where it said nothing of the kind.
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
        """What the candidate gains on this case, -1 to 1."""
        return self.candidate.score - self.incumbent.score

    @property
    def fixed(self) -> bool:
        return self.candidate.score > self.incumbent.score

    @property
    def broken(self) -> bool:
        return self.candidate.score < self.incumbent.score
