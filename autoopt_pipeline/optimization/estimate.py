"""Estimates what a run will use of language models, before it asks any.

The calls follow from the numbers of examples and optimizers. The tokens are those of real prompts: the baseline and the
programs with labelled demos cost nothing to make, and the offline stand-in answers a few examples with them.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import dspy

from autoopt_pipeline.evaluation.runner import answer_all, costs_of
from autoopt_pipeline.evaluation.split import Split
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.modules.answer_format import JSON_SCHEMA, in_format
from autoopt_pipeline.modules.cascade import Cascade
from autoopt_pipeline.modules.spec import Example, Label, ModuleSpec
from autoopt_pipeline.optimization.optimizers import (
    BOOTSTRAPS,
    FEW_DEMOS,
    GEPA_MINIBATCH,
    GEPA_PATIENCE,
    GEPA_RUNS,
    MIN_FOR_BOOTSTRAP,
    MIN_FOR_GEPA,
    MIN_FOR_MIPRO,
    MIPRO_INSTRUCTIONS,
    MIPRO_TRIALS,
    SEARCH_DEV,
    OptimizerContext,
    bootstrap_sizes,
    demo_pickers,
)
from autoopt_pipeline.optimization.racing import rungs
from autoopt_pipeline.optimization.router_training import can_be_routed
from autoopt_pipeline.optimization.search import choosing_examples, compared_traces, reviewed_dev
from autoopt_pipeline.registry.serialization import serialize
from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenants.config import Budget, LMPrice, LMSettings, RoutingConfigUnified

SEARCHES = "a search for a better program"
"""What most runs use language models for."""

# Examples that the stand-in answers with each program, to measure its prompts.
_REHEARSED = 8

# Fraction of a teacher's answers that become demos. A rarer one makes it ask more examples.
_FULLY_RIGHT = 0.6

# Expected heats of halved demos, in prompts of full length: one of half the length, and often another.
_HALVINGS = 0.7

# Part of the comparison for which a finalist asks the model where a local router competes. One that wins alone, as most
# do, asks for none, one with a model for a part, and a program with demos for all.
_ASKED_BY_ROUTERS = 0.25

# Tokens of a teacher's call that writes instructions.
_REFLECTION_TOKENS = 3000


@dataclass(frozen=True)
class LMEstimate:
    """Expected calls, tokens and dollars. `lm_dollars` is None if the price is unknown."""

    lm_calls: float = 0.0
    lm_tokens: float = 0.0
    lm_dollars: float | None = 0.0

    def __add__(self, other: "LMEstimate") -> "LMEstimate":
        known = self.lm_dollars is not None and other.lm_dollars is not None
        dollars = (self.lm_dollars or 0.0) + (other.lm_dollars or 0.0) if known else None
        return LMEstimate(self.lm_calls + other.lm_calls, self.lm_tokens + other.lm_tokens, dollars)

    def __mul__(self, times: float) -> "LMEstimate":
        dollars = None if self.lm_dollars is None else times * self.lm_dollars
        return LMEstimate(times * self.lm_calls, times * self.lm_tokens, dollars)

    @property
    def known(self) -> dict[str, float]:
        """The numbers that are known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def within(self, budget: Budget) -> "LMEstimate":
        """Return the part that a budget pays for."""
        shares = [1.0, budget.max_lm_calls / max(1.0, self.lm_calls), budget.max_tokens / max(1.0, self.lm_tokens)]
        if budget.max_dollars is not None and self.lm_dollars:
            shares.append(budget.max_dollars / self.lm_dollars)
        return self * min(shares)


def estimate_search(  # noqa: PLR0913 - the parts of one run, as in `search`
    spec: ModuleSpec,
    config: RoutingConfigUnified,
    labels: Sequence[Label],
    split: Split,
    programs: tuple[dspy.Module, dspy.Module],
    lm: MeteredLM,
    teacher: MeteredLM,
    *,
    others: Sequence[MeteredLM],
    labeller: MeteredLM | None,
    most_labelled: int,
) -> LMEstimate:
    """Estimate a search and the comparison of its finalist. `programs` are the incumbent and the start.

    `others` are the candidate models. `labeller`, if there is one, labels dev examples, up to `most_labelled` in all.
    """
    incumbent, start = programs
    labelled: Sequence[Example] = ()
    if labeller:
        labelled = split.dev_requests[: most_labelled - len(reviewed_dev(split))]
        split = replace(split, dev=(*reviewed_dev(split), *labelled))
    dev = choosing_examples(split)
    total = LMEstimate()
    if lm.answer_format == "auto" and not lm.is_stand_in:  # most endpoints enforce a schema
        start = in_format(start, JSON_SCHEMA)
    sample = dev[:_REHEARSED]
    context = OptimizerContext(
        spec=spec,
        labels=labels,
        start=start,
        train=split.train,
        dev=dev,
        lm=lm,
        teacher=teacher,
        max_labeled_demos=config.dspy_max_labeled_demos,
        max_bootstrapped_demos=config.dspy_max_bootstrapped_demos,
    )
    # All of dev is asked of the incumbent, and of its model if a local router stands before it.
    first = [incumbent, incumbent.model] if isinstance(incumbent, Cascade) else [incumbent]
    distinct = {serialize(spec, config.tenant_id, labels, program).digest: program for program in first}
    few_demos = start
    for optimizer in demo_pickers(context):
        with suppress(Exception):  # the search leaves it out as well
            program = optimizer.compile()
            distinct.setdefault(serialize(spec, config.tenant_id, labels, program).digest, program)
            few_demos = program if optimizer.name == f"coverage-{FEW_DEMOS}" else few_demos
    costs = [_rehearsed(spec, program, sample, lm.price) for program in distinct.values()]
    before, with_demos = costs[0], costs[len(first) :]
    largest = max(costs, key=lambda cost: cost.lm_tokens)
    if labeller:
        total += _rehearsed(spec, spec.build_program(labels), sample, labeller.price) * len(labelled)
    total += sum(costs[: len(first)], LMEstimate()) * len(dev) + _mean(with_demos) * _heat(len(with_demos), len(dev))
    # A candidate model answers the same prompts, and those of the leader.
    for model in others:
        alike = [_rehearsed(spec, program, sample, model.price) for program in distinct.values()]
        total += _mean(alike) * _heat(len(alike), len(dev))
    if config.dspy_max_bootstrapped_demos and len(split.train) >= MIN_FOR_BOOTSTRAP:
        asked = sum(bootstrap_sizes(config.dspy_max_bootstrapped_demos)) / _FULLY_RIGHT
        taught = _rehearsed(spec, start, sample, teacher.price)
        bootstrapped = _rehearsed(spec, few_demos, sample, lm.price)  # about as many demos
        total += taught * min(asked, len(split.train)) + bootstrapped * _heat(BOOTSTRAPS, len(dev))
    if not (lm.is_stand_in or teacher.is_stand_in):
        total += _improvers(len(split.train), len(dev), largest)
    total += largest * (_HALVINGS * _heat(2, len(dev)))
    routed = config.local_router and can_be_routed(spec, labels, split.train)
    finalist = largest * (_ASKED_BY_ROUTERS if routed else 1.0)
    return (total + (before + finalist) * compared_traces(split)).within(config.budget)


def estimate_comparison(
    spec: ModuleSpec, programs: tuple[dspy.Module, dspy.Module], drawn: Sequence[Example], lm: MeteredLM
) -> LMEstimate:
    """Estimate the comparison of two programs on drawn traces."""
    return estimate_answers(spec, programs[0], drawn, lm) + estimate_answers(spec, programs[1], drawn, lm)


def estimate_answers(spec: ModuleSpec, program: dspy.Module, asked: Sequence[Example], lm: MeteredLM) -> LMEstimate:
    """Estimate what a program uses to answer these examples."""
    return _rehearsed(spec, program, asked[:_REHEARSED], lm.price) * len(asked)


def _improvers(train: int, dev: int, program: LMEstimate) -> LMEstimate:
    """The searches for instructions, each with the race of its program on the rest of dev.

    What the leader of the race was asked is not asked again, so only other instructions cost anything.
    """
    total, chosen_on = LMEstimate(), min(dev, SEARCH_DEV)
    written = LMEstimate(1.0, _REFLECTION_TOKENS, _reflection_dollars(program))
    if train >= MIN_FOR_GEPA:
        runs = min(GEPA_RUNS, 2 * GEPA_MINIBATCH * GEPA_PATIENCE + chosen_on)
        total += program * (runs + dev - chosen_on) + written * GEPA_PATIENCE
    if train >= MIN_FOR_MIPRO:
        others = min(MIPRO_TRIALS, MIPRO_INSTRUCTIONS) - 1
        total += program * (others * chosen_on + dev - chosen_on) + written * (2 * MIPRO_INSTRUCTIONS)
    return total


def _reflection_dollars(program: LMEstimate) -> float | None:
    return program.lm_dollars and program.lm_dollars * _REFLECTION_TOKENS / max(1.0, program.lm_tokens)


def _heat(entrants: int, examples: int) -> int:
    """Return the answers of a heat of a race, in which half of the entrants are dropped after each rung."""
    answers, reached = 0, 0
    for rung in rungs(examples):
        answers += entrants * (rung - reached)
        entrants, reached = math.ceil(entrants / 2), rung
    return answers


def _rehearsed(
    spec: ModuleSpec, program: dspy.Module, examples: Sequence[Example], price: LMPrice | None
) -> LMEstimate:
    """Return what one decision of a program costs, by the prompts that the stand-in is given."""
    stand_in = metered_lm(LMSettings(model=STAND_IN, price=price), Meter(10**6, 10**12))
    cost = costs_of({"": answer_all(spec, program, examples, stand_in)}).get("")
    return LMEstimate(cost.lm_calls, cost.tokens, cost.dollars) if cost else LMEstimate()


def _mean(costs: Iterable[LMEstimate]) -> LMEstimate:
    all_costs = list(costs)
    return sum(all_costs, LMEstimate()) * (1 / max(1, len(all_costs)))
