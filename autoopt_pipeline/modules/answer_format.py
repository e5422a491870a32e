"""Answer format of a predictor: DSPy's chat format, or JSON with a schema.

A predictor's signature carries its format, so the format follows the predictor through optimizers, into composed
programs, and from a run to serving. `lm/adapters.py` implements the formats.
"""

from typing import Any, Literal

import dspy

AnswerFormat = Literal["chat", "json_schema"]

CHAT: AnswerFormat = "chat"
JSON_SCHEMA: AnswerFormat = "json_schema"

# Key of the format in the signature's first output field.
_CARRIED = "answer_format"


def answer_format(signature: type[dspy.Signature]) -> AnswerFormat:
    """Return the answer format that a signature carries."""
    return _first_output(signature).json_schema_extra.get(_CARRIED, CHAT)


def in_format(program: dspy.Module, wanted: AnswerFormat) -> dspy.Module:
    """Return a copy of the program whose predictors all use this format."""
    copied = program.deepcopy()
    for predictor in copied.predictors():
        set_answer_format(predictor, wanted)
    return copied


def set_answer_format(predictor: dspy.Predict, wanted: AnswerFormat) -> None:
    """Set the format of one predictor."""
    signature: Any = predictor.signature
    if answer_format(signature) != wanted:
        predictor.signature = signature.with_updated_fields(next(iter(signature.output_fields)), **{_CARRIED: wanted})


def _first_output(signature: type[dspy.Signature]) -> Any:
    return next(iter(signature.output_fields.values()))
