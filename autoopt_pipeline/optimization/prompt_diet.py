"""Makes a program's prompts shorter: fewer demos, and the module's own instructions. Calls no model."""

import dspy

from autoopt_pipeline.modules.cascade import Cascade
from autoopt_pipeline.optimization.optimizers import Optimizer

# Fewest demos that are worth halving. Fewer are a small part of a prompt.
MIN_HALVED = 4

# Instructions are worth replacing if they are so many times as long as the module's own.
LONG_INSTRUCTIONS = 1.5

_WITH = " with "


def halved_demos(name: str, program: dspy.Module) -> list[Optimizer]:
    """Return two programs with one half of each predictor's demos, or none if it has few.

    Every other demo is in the same half, so that both halves show all labels. The race says which half is worth more,
    and halving it again leaves the demos that the answers depend on.
    """
    demos = sum(len(predictor.demos) for predictor in program.predictors())
    if isinstance(program, Cascade) or demos < MIN_HALVED:
        return []

    def half(first: int) -> dspy.Module:
        lean = program.deepcopy()
        for predictor in lean.predictors():
            predictor.demos = predictor.demos[first::2]
        return lean

    whole = name.split(_WITH)[0]
    return [
        Optimizer(f"{whole}{_WITH}{(demos + 1) // 2} demos", lambda: half(0)),
        Optimizer(f"{whole}{_WITH}{demos // 2} other demos", lambda: half(1)),
    ]


def own_instructions(name: str, program: dspy.Module, start: dspy.Module) -> list[Optimizer]:
    """Return the program with the instructions of `start` where its own are much longer, or nothing if none are."""
    pairs = list(zip(program.predictors(), start.predictors(), strict=True))
    lengths = [(len(own.signature.instructions), len(other.signature.instructions)) for own, other in pairs]
    if isinstance(program, Cascade) or not any(own > LONG_INSTRUCTIONS * other for own, other in lengths):
        return []

    def with_own() -> dspy.Module:
        lean = program.deepcopy()
        for predictor, other in zip(lean.predictors(), start.predictors(), strict=True):
            predictor.signature = predictor.signature.with_instructions(other.signature.instructions)
        return lean

    return [Optimizer(f"{name}{_WITH}short instructions", with_own)]
