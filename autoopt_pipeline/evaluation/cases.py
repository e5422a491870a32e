"""Scored answers of two programs to the same example."""

from dataclasses import dataclass

UNDECIDED_CLASS = "undecided"
"""The class of a case whose right answer nobody can name."""


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
class Judged:
    """A judge's word on a case, before any person's: the candidate's gain if the judge is right, -1 to 1.

    People are asked as well with a chance of `share`, which depends on nothing but the judge's word, and `asked` is how
    that came out.
    """

    difference: float
    share: float
    asked: bool


UNJUDGED = Judged(0.0, 1.0, asked=True)
"""A case on which no judge can be read, among others: people are asked."""


@dataclass(frozen=True)
class PairedCase:
    """One held-out example answered by both programs; `label` is the class of its right answer."""

    label: str
    incumbent: ScoredAnswer
    candidate: ScoredAnswer
    judged: Judged | None = None

    @property
    def difference(self) -> float:
        """The candidate's gain on this case, -1 to 1; where people were not asked, by the judge's answer."""
        return self.candidate.score - self.incumbent.score

    @property
    def by_person(self) -> bool:
        """Whether the right answer is known from elsewhere than the judge."""
        return self.judged is None or self.judged.asked

    @property
    def evidence(self) -> float:
        """The gain that a test may count: on average no more than people's difference, whatever a judge says.

        A review corrects the judge, and counts for the cases too about which people were not asked (prediction-powered
        e-values: Csillag, Struchiner & Goedert, arXiv 2502.04294). Where people are never asked, the worst is assumed.
        """
        judged = self.judged
        if judged is None or judged.share == 1:
            return self.difference
        if judged.share == 0:
            return -1.0
        return judged.difference + judged.asked * (self.difference - judged.difference) / judged.share

    @property
    def fixed(self) -> bool:
        return self.candidate.score > self.incumbent.score

    @property
    def broken(self) -> bool:
        return self.candidate.score < self.incumbent.score
