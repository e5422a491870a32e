"""Looking for a better program: optimizers within a budget, the best on dev is the finalist."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dspy

from autoopt_pipeline.artifacts.programs import pack
from autoopt_pipeline.artifacts.store import Program
from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.lm.meter import BudgetExhausted
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.spec import Example, Label, ModuleSpec, Provenance
from autoopt_pipeline.optimization.evaluation import answer_all, raising_outages, share_right
from autoopt_pipeline.optimization.optimizers import Workshop, optimizers_for
from autoopt_pipeline.optimization.report import Tried
from autoopt_pipeline.optimization.split import Split
from autoopt_pipeline.tenants.config import RoutingConfigUnified

MIN_DEV = 10
"""Fewest dev examples that can choose among programs."""


@dataclass(frozen=True)
class Finalist:
    """The program that goes on to the holdout, as it is and as it is stored."""

    optimizer: str
    program: dspy.Module
    stored: Program


@dataclass(frozen=True)
class Search:
    """What a search came to; no finalist where nothing beat the incumbent on dev. The score is a share of 1."""

    finalist: Finalist | None
    tried: tuple[Tried, ...]
    incumbent_dev_score: float
    notes: tuple[str, ...]


def search(
    spec: ModuleSpec,
    config: RoutingConfigUnified,
    labels: Sequence[Label],
    split: Split,
    incumbent: dspy.Module,
    lm: MeteredLM,
    say: Callable[[str], None],
) -> Search:
    """Try optimizers within the budget; the best on dev is the finalist, if it beats the incumbent there."""
    dev = choosing_examples(split)
    shop = Workshop(
        spec=spec,
        baseline=spec.build_program(labels),
        train=split.train,
        dev=dev,
        lm=lm,
        max_labeled_demos=config.dspy_max_labeled_demos,
        max_bootstrapped_demos=config.dspy_max_bootstrapped_demos,
    )
    tried: list[Tried] = []
    notes: list[str] = []
    best: Finalist | None = None
    incumbent_dev: float | None = None
    try:
        # What the search must leave over for the comparison on the holdout.
        with lm.meter.holding_back(comparison_calls(split)):
            incumbent_dev = best_dev = share_right(dev, answer_all(spec, incumbent, dev, lm))
            for optimizer in optimizers_for(shop):
                calls_before = lm.meter.calls
                with raising_outages(lm):
                    program = optimizer.compile()
                score = share_right(dev, answer_all(spec, program, dev, lm))
                tried.append(Tried(optimizer.name, score, lm.meter.calls - calls_before))
                say(f"{optimizer.name}: {100 * score:.1f} % on dev, {tried[-1].lm_calls} LM calls")
                if score > best_dev:
                    best_dev = score
                    best = Finalist(optimizer.name, program, pack(spec, config.tenant_id, labels, program))
    except BudgetExhausted as e:
        if incumbent_dev is None:
            raise budget_too_small(config, str(e)) from None
        notes.append(f"the budget ended the search: {e}; the best program so far was kept")
        say(notes[-1])
    return Search(best, tuple(tried), incumbent_dev, tuple(notes))


def choosing_examples(split: Split) -> list[Example]:
    """The dev examples that choose among programs: the reviewed ones, where they are enough.

    The others carry the application's own answers, with which its present program agrees, right or wrong.
    """
    reviewed = [example for example in split.dev if example.provenance is not Provenance.OUTCOME]
    return reviewed if len(reviewed) >= MIN_DEV else list(split.dev)


def comparison_calls(split: Split) -> int:
    """Calls that comparing two programs on the holdout takes, and a few for what DSPy asks again when it is slow."""
    return 2 * (len(split.holdout) + len(split.guard)) + 10


def check_budget(config: RoutingConfigUnified, split: Split) -> None:
    """A budget that cannot even pay the comparison would end every run the same way, so it is an error."""
    least = comparison_calls(split) + len(choosing_examples(split))
    if config.budget.max_lm_calls < least:
        raise budget_too_small(
            config, f"budget.max_lm_calls is {config.budget.max_lm_calls}, and {least} calls are the least"
        )


def budget_too_small(config: RoutingConfigUnified, what: str) -> InvalidConfig:
    """The error for a budget that cannot decide anything."""
    return InvalidConfig(
        f"tenant {config.tenant_id}: the budget does not pay for a comparison: {what}",
        "raise budget.max_lm_calls and budget.max_tokens",
    )
