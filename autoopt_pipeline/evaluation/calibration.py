"""Calibration: how well a program's confidence agrees with its scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoopt_pipeline.evaluation.cases import ScoredAnswer

# The value of a missing confidence, which favours neither answer.
UNKNOWN = 0.5

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers with a confidence from `low` up to, not including, `high`. Means are None without answers."""

    low: float
    high: float
    count: int
    mean_confidence: float | None
    mean_score: float | None


def confidence_of(answer: ScoredAnswer) -> float:
    """Return the answer's confidence, `UNKNOWN` if it has none."""
    return UNKNOWN if answer.confidence is None else answer.confidence


def squared_errors(answers: Sequence[ScoredAnswer]) -> list[float]:
    """Return the squared distance of each confidence from its score, 0 to 1."""
    return [(confidence_of(answer) - answer.score) ** 2 for answer in answers]


def brier(answers: Sequence[ScoredAnswer]) -> float:
    """Return the mean squared error of the confidence (Brier 1950).

    0 is perfect. A constant confidence of 0.5 gives 0.25 for answers that are right or wrong. Raises ZeroDivisionError
    without answers.
    """
    return sum(squared_errors(answers)) / len(answers)


def unexplained(answers: Sequence[ScoredAnswer]) -> list[float]:
    """Return each answer's squared error minus the squared distance of its score from the mean score.

    The mean of these values is the Brier score minus its uncertainty: the part that the confidence itself causes
    (reliability minus resolution; Murphy, J. Appl. Meteorol. 1973). The uncertainty is removed because a program that
    is right half of the time is harder to predict than one that is always wrong. Raises ZeroDivisionError without
    answers.
    """
    mean = sum(answer.score for answer in answers) / len(answers)
    errors = squared_errors(answers)
    return [error - (answer.score - mean) ** 2 for error, answer in zip(errors, answers, strict=True)]


def reliability(answers: Sequence[ScoredAnswer]) -> tuple[Bin, ...]:
    """Group answers by confidence into `BINS` equal bins; the last one includes 1.

    The confidence is well calibrated if its mean in each bin is close to the mean score.
    """
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
