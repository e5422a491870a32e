"""The ways to make a better program, and which of them the data is enough for."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import dspy

from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.spec import Example, ModuleSpec, Provenance
from autoopt_pipeline.optimization.evaluation import dspy_example, using
from autoopt_pipeline.optimization.split import normalize_query

SEED = 9
"""Of every optimizer that takes one, so the same traces give the same program."""

MIN_FOR_SEARCH = 30
"""Training examples from which on a random search over demo sets pays."""

MIN_FOR_INSTRUCTIONS = 100
"""Training examples from which on searching over instructions as well pays."""

FEW_DEMOS = 16

_WORTH = {Provenance.HUMAN: 1.0, Provenance.JUDGE: 0.9, Provenance.OUTCOME: 0.6}


@dataclass(frozen=True)
class Optimizer:
    """A named way to compile a program from the baseline."""

    name: str
    compile: Callable[[], dspy.Module]


@dataclass(frozen=True)
class Workshop:
    """What all optimizers work with."""

    spec: ModuleSpec
    baseline: dspy.Module
    train: Sequence[Example]
    dev: Sequence[Example]
    lm: MeteredLM
    max_labeled_demos: int
    max_bootstrapped_demos: int


def optimizers_for(shop: Workshop) -> Iterator[Optimizer]:
    """The optimizers that fit the amount of data, cheapest first, so a spent budget leaves the cheap ones' work."""
    most = min(shop.max_labeled_demos, len(shop.train))
    for k in sorted({min(FEW_DEMOS, most), most}):
        yield Optimizer(f"coverage-{k}", lambda k=k: _coverage(shop, k))
    yield Optimizer(f"labeled-few-shot-{most}", lambda: _labeled_few_shot(shop, most))
    # Both searches bootstrap; with no bootstrapped demos allowed they cannot run.
    if shop.max_bootstrapped_demos == 0:
        return
    if len(shop.train) >= MIN_FOR_SEARCH:
        yield Optimizer("bootstrap-random-search", lambda: _bootstrap_random_search(shop, most))
    # The stand-in cannot write instructions, so a search over them would be for show.
    if len(shop.train) >= MIN_FOR_INSTRUCTIONS and not shop.lm.is_stand_in:
        yield Optimizer("miprov2-light", lambda: _mipro(shop))


def _coverage(shop: Workshop, k: int) -> dspy.Module:
    program = shop.baseline.deepcopy()
    demos = [dspy_example(shop.spec, example) for example in pick_coverage(shop.train, k)]
    for predictor in program.predictors():
        predictor.demos = demos
    return program


def _labeled_few_shot(shop: Workshop, k: int) -> dspy.Module:
    with using(shop.lm):
        return dspy.LabeledFewShot(k=k).compile(shop.baseline.deepcopy(), trainset=_dspy(shop, shop.train))


def _bootstrap_random_search(shop: Workshop, labeled: int) -> dspy.Module:
    with using(shop.lm):
        search = dspy.BootstrapFewShotWithRandomSearch(
            metric=_metric(shop.spec),
            max_bootstrapped_demos=shop.max_bootstrapped_demos,
            max_labeled_demos=labeled,
            num_candidate_programs=6,
            num_threads=shop.lm.threads,
            max_errors=len(shop.train) * 20,
        )
        return search.compile(shop.baseline.deepcopy(), trainset=_dspy(shop, shop.train), valset=_dspy(shop, shop.dev))


def _mipro(shop: Workshop) -> dspy.Module:
    with using(shop.lm):
        search = dspy.MIPROv2(
            metric=_metric(shop.spec),
            auto="light",
            max_bootstrapped_demos=min(4, shop.max_bootstrapped_demos),
            max_labeled_demos=min(FEW_DEMOS, shop.max_labeled_demos),
            num_threads=shop.lm.threads,
            max_errors=len(shop.train) * 20,
            seed=SEED,
        )
        return search.compile(
            shop.baseline.deepcopy(),
            trainset=_dspy(shop, shop.train),
            valset=_dspy(shop, shop.dev),
            seed=SEED,
        )


def pick_coverage(examples: Sequence[Example], k: int) -> list[Example]:
    """Choose k demos that between them show most of each label's wording. Calls no model.

    Labels take turns; each adds the example whose words are most frequent among the label's examples and not
    shown yet. Better labels count more.
    """
    waiting: dict[str, list[tuple[Example, frozenset[str]]]] = {}
    for example in examples:
        words = frozenset(normalize_query(example.query).split())
        waiting.setdefault(example.label, []).append((example, words))
    frequency = {label: Counter(w for _, words in own for w in words) for label, own in waiting.items()}
    shown: dict[str, Counter[str]] = {label: Counter() for label in waiting}
    chosen: list[Example] = []
    turns = sorted(waiting, key=lambda label: (-len(waiting[label]), label))
    while len(chosen) < min(k, len(examples)):
        for label in turns:
            if not waiting[label] or len(chosen) == k:
                continue
            gains = [
                _WORTH[example.provenance]
                * sum(frequency[label][w] / 2 ** (2 * shown[label][w]) for w in sorted(words))
                / (1 + len(words)) ** 0.5
                for example, words in waiting[label]
            ]
            example, words = waiting[label].pop(gains.index(max(gains)))
            chosen.append(example)
            shown[label].update(words)
    return chosen


def _metric(spec: ModuleSpec) -> Callable[..., bool]:
    def exact(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        return prediction.get(spec.output_field) == example[spec.output_field]

    return exact


def _dspy(shop: Workshop, examples: Sequence[Example]) -> list[dspy.Example]:
    return [dspy_example(shop.spec, example) for example in examples]
