"""Programs and a grading that a module may name, unlike those of the built-in modules."""

from collections.abc import Sequence
from typing import Any

import dspy

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Grading, Label, ModuleSpec, Values


class TwoSteps(dspy.Module):
    """Thinks first; nobody knows what is right to think."""

    def __init__(self, spec: ModuleSpec, labels: Sequence[Label]) -> None:
        super().__init__()
        self.think = dspy.Predict("query -> thoughts, confidence: float")
        self.routing = get_module("routing").build_program(labels)

    def forward(self, query: str, **inputs: str) -> dspy.Prediction:
        return self.routing(query=query, relationships=self.think(query=query).thoughts)


class TitleThenBody(dspy.Module):
    """No predictor is told the whole request."""

    def __init__(self, spec: ModuleSpec, labels: Sequence[Label]) -> None:
        super().__init__()
        self.topic = dspy.Predict("title -> topic")
        self.label = dspy.Predict(f"topic, body -> agent: Literal{[label.name for label in labels]}, confidence: float")

    def forward(self, title: str, body: str) -> dspy.Prediction:
        return self.label(topic=self.topic(title=title).topic, body=body)


class Quoting(dspy.Module):
    """A program whose teacher repeats in its answer what it is shown."""

    def __init__(self, spec: ModuleSpec, labels: object) -> None:
        super().__init__()
        self.decide = dspy.Predict("query -> reasoning, agent, confidence: float")

    def forward(self, query: str, **inputs: str) -> dspy.Prediction:
        prediction = self.decide(query=query)
        prediction.agent = "x"
        prediction.reasoning = f"like {self.decide.demos[-1]['query']!r}" if len(query) % 2 else "it asks for it"
        return prediction


def _answered_agent(spec: ModuleSpec, right: Values, given: Values) -> Any:
    return given["agent"]


ODD = Grading(_answered_agent, lambda spec, values: "a")
"""Takes the answered agent as the score, whatever it is."""
