"""The DSPy programs of the built-in modules. Imports DSPy, so import it only where a program runs."""

from collections.abc import Sequence
from typing import Any, Literal

import dspy
from dspy.signatures.signature import make_signature

from autoopt_pipeline.modules.spec import Label


class Classifier(dspy.Module):
    """One prediction with an answer out of fixed labels and a confidence between 0 and 1."""

    def __init__(self, signature: type[dspy.Signature], output_field: str) -> None:
        super().__init__()
        self.output_field = output_field
        self.decide = dspy.Predict(signature)

    def forward(self, **inputs: str) -> dspy.Prediction:
        prediction = self.decide(**inputs)
        # DSPy states a field's bounds in the prompt but does not enforce them.
        prediction.confidence = min(max(float(prediction.confidence), 0.0), 1.0)
        return prediction


def modality_program(labels: Sequence[Label]) -> Classifier:
    """query -> modality, confidence."""
    signature = make_signature(
        {
            "query": (str, dspy.InputField(desc="what the user asked")),
            "modality": (_literal(labels), dspy.OutputField(desc=_choices("kind of content", labels))),
            "confidence": (float, dspy.OutputField(desc=_CONFIDENCE)),
        },
        "Decide which kind of content would answer the query best.",
    )
    return Classifier(signature, "modality")


def routing_program(labels: Sequence[Label]) -> Classifier:
    """query -> reasoning, agent, confidence."""
    signature = make_signature(
        {
            "query": (str, dspy.InputField(desc="what the user asked")),
            "reasoning": (str, dspy.OutputField(desc="one short sentence that leads to the choice")),
            "agent": (_literal(labels), dspy.OutputField(desc=_choices("agent", labels))),
            "confidence": (float, dspy.OutputField(desc=_CONFIDENCE)),
        },
        "Choose the one agent that should take the query.",
    )
    return Classifier(signature, "agent")


_CONFIDENCE = "how likely the choice is right, from 0 to 1"


def _literal(labels: Sequence[Label]) -> Any:
    return Literal[tuple(label.name for label in labels)]  # ty: ignore[invalid-type-form]


def _choices(what: str, labels: Sequence[Label]) -> str:
    described = [f"{label.name} ({label.description})" for label in labels if label.description]
    return f"the best {what}" + (f": {'; '.join(described)}" if described else "")
