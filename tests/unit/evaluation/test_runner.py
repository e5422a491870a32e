"""Answers and scores of modules that keep to no rule."""

import math
from dataclasses import replace
from typing import Any

import dspy
import pytest

from autoopt_pipeline.errors import InvalidModule
from autoopt_pipeline.evaluation.calibration import reliability
from autoopt_pipeline.evaluation.runner import Answer, answer_all, grade
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.tenants.config import LMSettings
from tests.support.sample_decisions import example

ROUTING = get_module("routing")


class Saying(dspy.Module):
    """Is as sure of its answer as it is told to be."""

    def __init__(self, confidence: Any) -> None:
        super().__init__()
        self.confidence = confidence

    def forward(self, **inputs: str) -> dspy.Prediction:
        return dspy.Prediction(agent="a", confidence=self.confidence)


@pytest.mark.parametrize(
    ("confidence", "read"),
    [(0.5, 0.5), (1, 1.0), (True, None), ("high", None), (10**400, None), (math.nan, None), (1.1, None), ([], None)],
    ids=str,
)
def test_a_confidence_is_a_share_of_1_or_none(confidence: Any, read: float | None) -> None:
    asked = [example("where is it", "a")]
    answers = answer_all(ROUTING, Saying(confidence), asked, metered_lm(LMSettings(model="stand-in"), Meter(9, 9)))
    assert answers == [Answer({"agent": "a"}, read)]
    assert sum(each.count for each in reliability(grade(ROUTING, asked, answers))) == 1


ODDLY_GRADED = replace(ROUTING, name="odd", grading="tests.support.unusual_parts:ODD")


@pytest.mark.parametrize("score", [math.nan, 1.5, -0.1, "0.5", None, 10**400, math.inf])
def test_a_grading_that_gives_no_number_from_0_to_1_is_named(score: Any) -> None:
    with pytest.raises(InvalidModule, match=r"module odd: its grading tests\.support\.unusual_parts:ODD") as error:
        grade(ODDLY_GRADED, [example("where is it", "a")], [Answer({"agent": score}, None)])
    assert "from 0 to 1" in error.value.remedy


@pytest.mark.parametrize(("given_score", "score"), [(True, 1.0), (0, 0.0), (1 + 1e-12, 1.0), (-1e-12, 0.0)])
def test_a_score_may_be_a_boolean_or_a_little_off_by_rounding(given_score: Any, score: float) -> None:
    (graded,) = grade(ODDLY_GRADED, [example("where is it", "a")], [Answer({"agent": given_score}, None)])
    assert graded.score == score
