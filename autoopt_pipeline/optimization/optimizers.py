"""The ways to make a better program: DSPy's optimizers, and a picker of demos. What they make is judged elsewhere."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from gepa.utils import NoImprovementStopper

from autoopt_pipeline.evaluation.runner import ASSUMED, dspy_example, using
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.similarity import normalize_query, word_set
from autoopt_pipeline.modules.spec import Example, ModuleSpec, Provenance
from autoopt_pipeline.registry.serialization import ASKED, demo_query, queries_shown

# Their names, without the number that tells one candidate of theirs from the next.
OPTIMIZERS = ("start", "coverage", "labeled-few-shot", "bootstrap-few-shot", "gepa", "miprov2")

# Of every optimizer that takes one, so the same traces give the same program.
SEED = 9

# DSPy's own default for labelled demos; the other size that is tried is the most that the tenant allows.
FEW_DEMOS = 16

# Sets of bootstrapped demos that are tried. DSPy's random search tries 16.
BOOTSTRAPS = 6

# Examples that a teacher is asked for each demo that it may fill, beside those for labelled demos.
BOOTSTRAP_TRIES = 2

# Training examples from which on an optimizer has enough to work with.
MIN_FOR_BOOTSTRAP, MIN_FOR_GEPA, MIN_FOR_MIPRO = 30, 50, 100

# Least score of an answer that may become a demo: half right answers would teach their wrong half too.
FULLY_RIGHT = 1.0

# Most of the budget that is left which one search for instructions may take: its winner must be judged as well.
SEARCH_SHARE = 0.5

# Dev examples with which DSPy's searches for instructions choose: the last ones, for the race starts with the first
# ones, and there what they chose has no advantage of having been chosen.
SEARCH_DEV = 50

# Most runs of the program in one GEPA, which may go beyond by one proposal and its evaluation.
GEPA_RUNS = 300

# Examples that GEPA reflects on at once. Of DSPy's 3 a good program gets all right every other time, for nothing.
GEPA_MINIBATCH = 8

# Proposals of GEPA without a better program after which it ends.
GEPA_PATIENCE = 10

# Instructions that MIPROv2 writes, and how often it tries one.
MIPRO_INSTRUCTIONS, MIPRO_TRIALS = 5, 6

_WORTH = {Provenance.HUMAN: 1.0, Provenance.JUDGE: 0.9, Provenance.OUTCOME: 0.6}


@dataclass(frozen=True)
class OptimizerContext:
    """What all optimizers work with: `lm` answers, `teacher` writes instructions and makes demos."""

    spec: ModuleSpec
    start: dspy.Module
    train: Sequence[Example]
    dev: Sequence[Example]
    lm: MeteredLM
    teacher: MeteredLM
    max_labeled_demos: int
    max_bootstrapped_demos: int


@dataclass(frozen=True)
class Optimizer:
    """A named way to make a program."""

    name: str
    compile: Callable[[], dspy.Module]


@dataclass(frozen=True)
class Improver:
    """A named way to make a program better by its instructions, and leave it its demos."""

    name: str
    compile: Callable[[dspy.Module], dspy.Module]

    def applied_to(self, name: str, program: dspy.Module) -> Optimizer:
        return Optimizer(f"{name} + {self.name}", lambda: self.compile(program))


def demo_pickers(shop: OptimizerContext) -> Iterator[Optimizer]:
    """Labelled demos. Making these programs calls no model."""
    most = min(shop.max_labeled_demos, len(shop.train))
    yield Optimizer("start", shop.start.deepcopy)
    for k in sorted({min(FEW_DEMOS, most), most}):
        yield Optimizer(f"coverage-{k}", lambda k=k: _coverage(shop, k))
    yield Optimizer(f"labeled-few-shot-{most}", lambda: _labeled_few_shot(shop, most))


def bootstrappers(shop: OptimizerContext) -> Iterator[Optimizer]:
    """Demos with the teacher's own answers, where these were fully right, as DSPy's random search makes them."""
    if shop.max_bootstrapped_demos > 0 and len(shop.train) >= MIN_FOR_BOOTSTRAP:
        for seed in range(BOOTSTRAPS):
            yield Optimizer(f"bootstrap-few-shot-{seed}", lambda seed=seed: _bootstrap(shop, seed))


def improvers(shop: OptimizerContext) -> Iterator[Improver]:
    """Searches for instructions, where there is enough to reflect on and a language model that follows instructions."""
    if shop.lm.is_stand_in or shop.teacher.is_stand_in:
        return  # instructions do not change the stand-in's answers, and it writes none
    if len(shop.train) >= MIN_FOR_GEPA:
        yield Improver("gepa", lambda program: _gepa(shop, program))
    if len(shop.train) >= MIN_FOR_MIPRO:
        yield Improver("miprov2", lambda program: _mipro(shop, program))


def _coverage(shop: OptimizerContext, k: int) -> dspy.Module:
    program = shop.start.deepcopy()
    for predictor in program.predictors():
        # The classes of a predictor are those of what it answers first; one between others has no right answers.
        for field in [name for name in predictor.signature.output_fields if name in shop.spec.outputs][:1]:
            known = [example for example in shop.train if field in example.right]
            chosen = pick_coverage(known, k, lambda example, field=field: json.dumps(example.right[field]))
            predictor.demos = _cut(shop, predictor.signature, _dspy(shop, chosen))
    return program


def pick_coverage(examples: Sequence[Example], k: int, label: Callable[[Example], str]) -> list[Example]:
    """Choose k demos that between them show most of each label's wording. Calls no model.

    Labels take turns; each adds the example whose words are most frequent among the label's examples and not
    shown yet. Better labels count more.
    """
    waiting: dict[str, list[tuple[Example, frozenset[str]]]] = {}
    for example in examples:
        words = word_set(normalize_query(example.query))
        waiting.setdefault(label(example), []).append((example, words))
    frequency = {name: Counter(w for _, words in own for w in words) for name, own in waiting.items()}
    shown: dict[str, Counter[str]] = {name: Counter() for name in waiting}
    chosen: list[Example] = []
    turns = sorted(waiting, key=lambda name: (-len(waiting[name]), name))
    while len(chosen) < min(k, len(examples)):
        for name in turns:
            if not waiting[name] or len(chosen) == k:
                continue
            gains = [
                _WORTH[example.provenance]
                * sum(frequency[name][w] / 2 ** (2 * shown[name][w]) for w in sorted(words))
                / (1 + len(words)) ** 0.5
                for example, words in waiting[name]
            ]
            example, words = waiting[name].pop(gains.index(max(gains)))
            chosen.append(example)
            shown[name].update(words)
    return chosen


def _labeled_few_shot(shop: OptimizerContext, k: int) -> dspy.Module:
    optimizer = dspy.LabeledFewShot(k=k)
    return _with_demos_of(shop, optimizer.compile(shop.start, trainset=_dspy(shop, shop.train)))


def _bootstrap(shop: OptimizerContext, seed: int) -> dspy.Module:
    """One candidate of `dspy.BootstrapFewShotWithRandomSearch`: its shuffle and its size, but not its evaluation.

    It gets enough examples to fill the demos, not all: where the teacher is hardly ever fully right it would ask them.
    """
    trainset = _dspy(shop, shop.train)
    _rng(seed).shuffle(trainset)
    trainset = trainset[: shop.max_labeled_demos + BOOTSTRAP_TRIES * shop.max_bootstrapped_demos]
    optimizer = dspy.BootstrapFewShot(
        metric=scorer(shop.spec),
        metric_threshold=FULLY_RIGHT,
        teacher_settings={"lm": shop.teacher.lm},
        max_bootstrapped_demos=_rng(seed).randint(1, shop.max_bootstrapped_demos),
        max_labeled_demos=shop.max_labeled_demos,
        max_errors=_any_number(shop),
    )
    with using(shop.lm):
        return _with_demos_of(shop, optimizer.compile(shop.start, trainset=trainset))


def _gepa(shop: OptimizerContext, program: dspy.Module) -> dspy.Module:
    predictors = len(program.predictors())
    # On examples that the program shows it is right whatever its instructions say.
    shown = {normalize_query(query) for query in queries_shown(program)}
    unseen = [example for example in shop.train if normalize_query(example.query) not in shown]
    optimizer = dspy.GEPA(
        metric=feedback_metric(shop.spec, program),
        max_metric_calls=min(GEPA_RUNS, _affordable(shop) // predictors),
        reflection_lm=shop.teacher.lm,
        reflection_minibatch_size=GEPA_MINIBATCH,
        use_merge=predictors > 1,
        num_threads=shop.lm.threads,
        warn_on_score_mismatch=False,
        seed=SEED,
        gepa_kwargs={"stop_callbacks": [NoImprovementStopper(GEPA_PATIENCE)]},
    )
    with using(shop.lm):
        return optimizer.compile(
            program.deepcopy(),
            trainset=_dspy(shop, unseen or shop.train),
            valset=_dspy(shop, shop.dev[-SEARCH_DEV:]),
        )


def _mipro(shop: OptimizerContext, program: dspy.Module) -> dspy.Module:
    chosen_on = _dspy(shop, shop.dev[-SEARCH_DEV:])
    with using(shop.lm):
        optimizer = dspy.MIPROv2(
            metric=scorer(shop.spec),
            metric_threshold=FULLY_RIGHT,
            prompt_model=shop.teacher.lm,
            task_model=shop.lm.lm,
            teacher_settings={"lm": shop.teacher.lm},
            # With no demos of its own it leaves the program those it has.
            max_bootstrapped_demos=0,
            max_labeled_demos=0,
            auto=None,
            num_candidates=MIPRO_INSTRUCTIONS,
            num_threads=shop.lm.threads,
            max_errors=_any_number(shop),
            track_stats=False,
            seed=SEED,
        )
        return optimizer.compile(
            program.deepcopy(),
            trainset=_dspy(shop, shop.train),
            valset=chosen_on,
            num_trials=max(1, min(MIPRO_TRIALS, _affordable(shop) // (len(chosen_on) * len(program.predictors())))),
            minibatch=False,
            seed=SEED,
        )


def scorer(spec: ModuleSpec) -> Callable[..., float]:
    """The module's score as DSPy's metric."""

    def score(gold: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        given = dict(prediction.items())
        return spec.score(_right(spec, gold), given) if all(name in given for name in spec.outputs) else 0.0

    return score


def feedback_metric(spec: ModuleSpec, program: dspy.Module) -> Callable[..., dspy.Prediction]:
    """The module's score with what was wrong in words, as GEPA's metric.

    Of one predictor it says only what that one answers, if it answers anything that can be right; the score is
    always that of the whole.
    """
    score = scorer(spec)
    answered_by = {
        name: [field for field in spec.outputs if field in predictor.signature.output_fields]
        for name, predictor in program.named_predictors()
    }

    def judge(
        gold: dspy.Example,
        prediction: dspy.Prediction,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> dspy.Prediction:
        fields = answered_by.get(pred_name or "") or spec.outputs
        right = _right(spec, gold)
        wrong = [
            f"Wrong: {field} is {_json(prediction.get(field))}, right is {_json(right[field])}."
            for field in fields
            if field in right and prediction.get(field) != right[field]
        ]
        return dspy.Prediction(score=score(gold, prediction), feedback=" ".join(wrong) or "Right.")

    return judge


def _right(spec: ModuleSpec, gold: dspy.Example) -> dict[str, Any]:
    return {name: gold[name] for name in spec.outputs if name in gold and name not in gold.get(ASSUMED, ())}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _with_demos_of(shop: OptimizerContext, compiled: dspy.Module) -> dspy.Module:
    """A fresh copy of the start with the demos of a compiled program.

    DSPy refuses to bootstrap from what it has compiled, and as a demo it takes the whole example.
    """
    program = shop.start.deepcopy()
    for predictor, other in zip(program.predictors(), compiled.predictors(), strict=True):
        predictor.demos = _cut(shop, predictor.signature, other.demos)
    return program


def _cut(shop: OptimizerContext, signature: type[dspy.Signature], demos: Sequence[dspy.Example]) -> list[dspy.Example]:
    """Demos with nothing but the predictor's own fields, of those that show an answer and not just how sure it is.

    One that does not tell the whole query, because other predictors get the rest, keeps it beside its fields: else
    nobody could tell later which examples a program has seen.
    """
    answers = set(signature.output_fields) - {"confidence"}
    cut = []
    for demo in demos:
        if answers.intersection(demo.keys()):
            own = dspy.Example(**{name: demo[name] for name in signature.fields if name in demo})
            if (asked := _asked(shop.train, signature, demo)) not in {None, demo_query(signature, own.toDict())}:
                own[ASKED] = asked
            cut.append(own)
    return cut


def _asked(train: Sequence[Example], signature: type[dspy.Signature], demo: dspy.Example) -> str | None:
    """The query of the first training example that agrees with a demo in every input that both have, or None.

    None too where a predictor is told nothing but what others answered.
    """
    told_both = {name for name in signature.input_fields if name in demo}
    for example in train:
        shared = [name for name in example.inputs if name in told_both]
        if shared and all(demo[name] == example.inputs[name] for name in shared):
            return example.query
    return None


def _rng(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  for reproducible picks, not for secrets


def _affordable(shop: OptimizerContext) -> int:
    return int(shop.lm.meter.calls_left * SEARCH_SHARE)


def _any_number(shop: OptimizerContext) -> int:
    """More errors than there can be: an answer that cannot be read is a wrong one, and ends no search."""
    return len(shop.train) * 100


def _dspy(shop: OptimizerContext, examples: Sequence[Example]) -> list[dspy.Example]:
    return [dspy_example(shop.spec, example) for example in examples]
