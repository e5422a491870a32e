"""In which format a predictor is asked: DSPy's chat format, or JSON by a schema.

A predictor carries its format in its signature, so it goes wherever the predictor goes: through optimizers, into a
composed program, and from a run to serving. `lm/adapters.py` does what it says.
"""

from typing import Any, Literal

import dspy

AnswerFormat = Literal["chat", "json_schema"]

CHAT: AnswerFormat = "chat"
JSON_SCHEMA: AnswerFormat = "json_schema"

_CARRIED = "answer_format"
"""Under this name the signature's first output field carries the format."""


def answer_format(signature: type[dspy.Signature]) -> AnswerFormat:
    """The format in which a predictor of this signature is asked."""
    return _first_output(signature).json_schema_extra.get(_CARRIED, CHAT)


def in_format(program: dspy.Module, wanted: AnswerFormat) -> dspy.Module:
    """A copy of the program whose predictors are all asked in this format."""
    copied = program.deepcopy()
    for predictor in copied.predictors():
        set_answer_format(predictor, wanted)
    return copied


def set_answer_format(predictor: dspy.Predict, wanted: AnswerFormat) -> None:
    """Have this predictor asked in this format from now on."""
    signature: Any = predictor.signature
    if answer_format(signature) != wanted:
        predictor.signature = signature.with_updated_fields(next(iter(signature.output_fields)), **{_CARRIED: wanted})


def _first_output(signature: type[dspy.Signature]) -> Any:
    return next(iter(signature.output_fields.values()))
