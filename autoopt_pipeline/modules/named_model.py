"""The language model that a predictor names. One that names none asks the tenant's own `lm`.

A predictor's signature carries the name, as it carries the answer format, so the name follows the predictor through
optimizers, into composed programs, and from a run to serving.
"""

from typing import Any

import dspy

# Key of the name in the signature's first output field.
_CARRIED = "named_model"


def named_model(signature: type[dspy.Signature]) -> str | None:
    """Return the model that a signature names, or None for the tenant's own."""
    first: Any = next(iter(signature.output_fields.values()))
    return first.json_schema_extra.get(_CARRIED)


def named_models(program: dspy.Module) -> set[str]:
    """Return the models that a program's predictors name."""
    named = {named_model(predictor.signature) for predictor in program.predictors()}
    return {name for name in named if name}


def models_asked(program: dspy.Module, own: str) -> list[str]:
    """Return the models that a program asks, where `own` is the tenant's own."""
    return sorted({named_model(predictor.signature) or own for predictor in program.predictors()})


def naming(program: dspy.Module, model: str) -> dspy.Module:
    """Return a copy of the program whose predictors all name this model."""
    copied = program.deepcopy()
    for predictor in copied.predictors():
        name_model(predictor, model)
    return copied


def name_model(predictor: dspy.Predict, model: str) -> None:
    """Let one predictor name a model."""
    signature: Any = predictor.signature
    predictor.signature = signature.with_updated_fields(next(iter(signature.output_fields)), **{_CARRIED: model})
