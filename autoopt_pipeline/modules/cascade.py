"""A program that answers what its local router is sure about, and asks a language model about the rest."""

from collections.abc import Sequence
from typing import Any

import dspy

from autoopt_pipeline.modules.local_router import LocalRouter
from autoopt_pipeline.modules.spec import Label, ModuleSpec


class Cascade(dspy.Module):
    """`model` answers unless the router's probability reaches `threshold`. At 0 the router answers alone.

    The predictors and their names are those of `model`, so every optimizer and every stored state fits both. `sources`
    are the ids of the traces that the router learnt from, and `module` is the name of what it decides.
    """

    def __init__(
        self,
        spec: ModuleSpec,
        labels: Sequence[Label],
        model: dspy.Module,
        router: LocalRouter,
        threshold: float,
        sources: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.router = router
        self.threshold = threshold
        self.sources = tuple(sources)
        self.module = spec.name
        self._answer = spec.output_field
        self._allowed = frozenset(label.name for label in labels)
        written = {name for predictor in model.predictors() for name in predictor.signature.output_fields}
        self._reasons = sorted(written - {spec.output_field, "confidence"})

    def forward(self, **inputs: str) -> dspy.Prediction:
        choice, share = self.router.choose(inputs, self._allowed)
        if choice is None or share < self.threshold:
            return self.model(**inputs)
        return dspy.Prediction(**dict.fromkeys(self._reasons, ""), **{self._answer: choice}, confidence=share)

    def named_parameters(self) -> list[tuple[str, Any]]:
        return self.model.named_parameters()


def cascades_in(program: dspy.Module) -> list[Cascade]:
    """Return a program and its parts, as far as they have a local router."""
    return [module for _, module in program.named_sub_modules() if isinstance(module, Cascade)]
