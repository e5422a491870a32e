"""Tests what a model's endpoint supports."""

import json
from contextlib import suppress
from typing import Literal

import dspy
from dspy.utils.exceptions import AdapterParseError

from autoopt_pipeline.lm.adapters import AnswerAdapter
from autoopt_pipeline.lm.failures import RequestRefused
from autoopt_pipeline.lm.metering import answer_text, listening
from autoopt_pipeline.modules.answer_format import JSON_SCHEMA, set_answer_format

_COLOURS = ("red", "green", "blue")


class _Question(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    colour: Literal["red", "green", "blue"] = dspy.OutputField()


def enforces_schema(lm: dspy.LM) -> bool:
    """Return whether the endpoint enforces a JSON schema. Takes one call.

    The prompt asks for a color that the schema does not allow, which distinguishes an endpoint that ignores the schema.
    Raises the engine's error if the model cannot answer at all.
    """
    predictor = dspy.Predict(_Question)
    set_answer_format(predictor, JSON_SCHEMA)
    quiet = dspy.context(lm=lm, adapter=AnswerAdapter(), disable_history=True, trace=None)
    # The answer is parsed below, more strictly.
    with listening() as heard, quiet, suppress(AdapterParseError, RequestRefused):
        predictor(question="Which colour is a ripe banana? Answer: yellow.")
    try:
        answer = json.loads(answer_text(heard.responses[-1]) if heard.responses else "")
    except ValueError:
        return False
    return isinstance(answer, dict) and list(answer) == ["colour"] and answer["colour"] in _COLOURS
