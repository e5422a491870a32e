"""DSPy programs of the built-in modules. Imports DSPy, so import this only where a program runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dspy
from dspy.signatures.signature import make_signature

from autoopt_pipeline.modules.builtin.cross_modal import MODALITIES, NONE
from autoopt_pipeline.modules.builtin.workflow import agents_text
from autoopt_pipeline.modules.scoring import PARALLEL, SEQUENTIAL
from autoopt_pipeline.modules.spec import Label, ModuleSpec


class Decider(dspy.Module):
    """One prediction with a confidence between 0 and 1. Input fields that are not given are filled in."""

    def __init__(self, signature: type[dspy.Signature], **defaults: str) -> None:
        super().__init__()
        self.defaults = defaults
        self.decide = dspy.Predict(signature)

    def forward(self, **inputs: str) -> dspy.Prediction:
        prediction = self.decide(**{**self.defaults, **inputs})
        prediction.confidence = _share(prediction.confidence)
        return prediction


class Unified(dspy.Module):
    """Modality first, then the agent, then the plan."""

    def __init__(self, parts: Mapping[str, dspy.Module]) -> None:
        super().__init__()
        self.modality = parts["modality"]
        self.routing = parts["routing"]
        self.workflow = parts["workflow"]

    def forward(self, query: str, **inputs: str) -> dspy.Prediction:
        modality = self.modality(query=query)
        routing = self.routing(query=query, modality=modality.modality, **inputs)
        plan = self.workflow(query=query)
        return dspy.Prediction(
            modality=modality.modality,
            reasoning=routing.reasoning,
            agent=routing.agent,
            agents=plan.agents,
            pattern=plan.pattern,
            # The score is the mean of the parts' scores, and so is what to expect of it.
            confidence=(modality.confidence + routing.confidence + plan.confidence) / 3,
        )


def modality_program(spec: ModuleSpec, labels: Sequence[Label]) -> Decider:
    """query -> modality, confidence."""
    signature = make_signature(
        {
            "query": (str, dspy.InputField(desc=_QUERY)),
            "modality": (_literal(_names(labels)), dspy.OutputField(desc=_choices("kind of content", labels))),
            "confidence": (float, dspy.OutputField(desc=_CONFIDENCE)),
        },
        "Decide which kind of content would answer the query best.",
    )
    return Decider(signature)


def routing_program(spec: ModuleSpec, labels: Sequence[Label]) -> Decider:
    """query, modality, entities, relationships -> reasoning, agent, confidence."""
    signature = make_signature(
        {
            "query": (str, dspy.InputField(desc=_QUERY)),
            "modality": (str, dspy.InputField(desc="the kind of content asked for, where it is known")),
            "entities": (str, dspy.InputField(desc="what the query names, where it was extracted")),
            "relationships": (str, dspy.InputField(desc="how the entities belong together, where it was extracted")),
            "reasoning": (str, dspy.OutputField(desc="one short sentence that leads to the choice")),
            "agent": (_literal(_names(labels)), dspy.OutputField(desc=_choices("agent", labels))),
            "confidence": (float, dspy.OutputField(desc=_CONFIDENCE)),
        },
        "Choose the one agent that should take the query.",
    )
    return Decider(signature, modality="", entities="", relationships="")


def cross_modal_program(spec: ModuleSpec, labels: Sequence[Label]) -> Decider:
    """query, modalities -> fuse, primary, secondary, confidence."""
    signature = make_signature(
        {
            "query": (str, dspy.InputField(desc=_QUERY)),
            "modalities": (str, dspy.InputField(desc="detected kinds of content with confidences, surest first")),
            "fuse": (_literal(_names(labels)), dspy.OutputField(desc=_choices("way to answer", labels))),
            "primary": (_literal(MODALITIES), dspy.OutputField(desc="the modality to answer from first")),
            "secondary": (
                _literal((*MODALITIES, NONE)),
                dspy.OutputField(desc=f"the modality to add, {NONE} without fusion"),
            ),
            "confidence": (float, dspy.OutputField(desc=_CONFIDENCE)),
        },
        "Decide whether answering from two modalities together gains enough over the best one alone.",
    )
    return Decider(signature)


def workflow_program(spec: ModuleSpec, labels: Sequence[Label]) -> Decider:
    """query, available_agents -> agents, pattern, confidence."""
    agents: Any = list[_literal(_names(labels))]  # ty: ignore[invalid-type-form]
    signature = make_signature(
        {
            "query": (str, dspy.InputField(desc=_QUERY)),
            "available_agents": (str, dspy.InputField(desc="the agents that can be used now")),
            "agents": (agents, dspy.OutputField(desc=_choices("agents in the order of their work", labels))),
            "pattern": (
                _literal((SEQUENTIAL, PARALLEL)),
                dspy.OutputField(desc="sequential when one agent needs what another made, else parallel"),
            ),
            "confidence": (float, dspy.OutputField(desc=_CONFIDENCE)),
        },
        "Plan which of the available agents take the query, with no more of them than it needs.",
    )
    return Decider(signature, available_agents=agents_text(labels))


def unified_program(spec: ModuleSpec, labels: Sequence[Label]) -> Unified:
    """query, entities, relationships -> modality, agent, agents, pattern, confidence."""
    return Unified({part.name: part.build_program(part.labels or labels) for part in spec.parts})


def declared_program(spec: ModuleSpec, labels: Sequence[Label]) -> Decider:
    """The declared inputs -> the one output, confidence. The module's description is the task."""
    signature = make_signature(
        {
            **{name: (str, dspy.InputField()) for name in spec.contract.inputs},
            spec.output_field: (
                _literal(_names(labels)),
                dspy.OutputField(desc=_choices(spec.output_field, labels)),
            ),
            "confidence": (float, dspy.OutputField(desc=_CONFIDENCE)),
        },
        spec.description,
    )
    optional = [name for name in spec.contract.inputs if name not in spec.contract.required]
    return Decider(signature, **dict.fromkeys(optional, ""))


_QUERY = "what the user asked"
_CONFIDENCE = "how likely the answer is right, from 0 to 1"


def _share(value: Any) -> float:
    """Clip to 0..1, because DSPy states a field's bounds in the prompt but does not enforce them."""
    number = float(value)
    return min(max(number, 0.0), 1.0) if math.isfinite(number) else 0.5


def _names(labels: Sequence[Label]) -> tuple[str, ...]:
    return tuple(label.name for label in labels)


def _literal(names: Sequence[str]) -> Any:
    return Literal[tuple(names)]  # ty: ignore[invalid-type-form]


def _choices(what: str, labels: Sequence[Label]) -> str:
    described = [f"{label.name} ({label.description})" for label in labels if label.description]
    return f"the best {what}" + (f": {'; '.join(described)}" if described else "")
