"""Whether a program's confidence can be believed."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoopt_pipeline.evaluation.cases import ScoredAnswer

# What a missing confidence counts as: it says nothing either way.
UNKNOWN = 0.5

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers with a confidence from `low` up to, not including, `high`. Means are None where there are no answers."""

    low: float
    high: float
    count: int
    mean_confidence: float | None
    mean_score: float | None


def confidence_of(answer: ScoredAnswer) -> float:
    """The answer's confidence, `UNKNOWN` where it has none."""
    return UNKNOWN if answer.confidence is None else answer.confidence


def squared_errors(answers: Sequence[ScoredAnswer]) -> list[float]:
    """How far each confidence was from the score, squared: 0 to 1."""
    return [(confidence_of(answer) - answer.score) ** 2 for answer in answers]


def brier(answers: Sequence[ScoredAnswer]) -> float:
    """Mean squared error of the confidence (Brier 1950): 0 is perfect, always saying 0.5 gives 0.25 for right and
    wrong answers. Raises ZeroDivisionError without answers."""
    return sum(squared_errors(answers)) / len(answers)


def unexplained(answers: Sequence[ScoredAnswer]) -> list[float]:
    """Each answer's squared error less the squared distance of its score from the mean score.

    Their mean is the Brier score less its uncertainty, which is what the confidence itself is to blame for (reliability
    less resolution; Murphy, J. Appl. Meteorol. 1973): a program that is right half of the time is harder to foretell
    than one that is always wrong. Raises ZeroDivisionError without answers.
    """
    mean = sum(answer.score for answer in answers) / len(answers)
    errors = squared_errors(answers)
    return [error - (answer.score - mean) ** 2 for error, answer in zip(errors, answers, strict=True)]


def reliability(answers: Sequence[ScoredAnswer]) -> tuple[Bin, ...]:
    """Confidence beside score in `BINS` equal bins, the last one including 1. Believable means: about the same."""
    members: list[list[ScoredAnswer]] = [[] for _ in range(BINS)]
    for answer in answers:
        members[min(int(confidence_of(answer) * BINS), BINS - 1)].append(answer)
    return tuple(
        Bin(
            low=k / BINS,
            high=(k + 1) / BINS,
            count=len(own),
            mean_confidence=sum(map(confidence_of, own)) / len(own) if own else None,
            mean_score=sum(answer.score for answer in own) / len(own) if own else None,
        )
        for k, own in enumerate(members)
    )
