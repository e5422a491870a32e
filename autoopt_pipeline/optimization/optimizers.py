"""Makes candidate programs with DSPy's optimizers and our own picker of demos. `search` judges them."""

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
from autoopt_pipeline.modules.cascade import Cascade
from autoopt_pipeline.modules.encoder import Encoder
from autoopt_pipeline.modules.similarity import normalize_query, quotes, word_set
from autoopt_pipeline.modules.spec import WORTH, Example, Label, ModuleSpec
from autoopt_pipeline.optimization.router_training import best_threshold, careful_threshold, train_router
from autoopt_pipeline.registry.serialization import ASKED, SOURCE, demo_query, queries_shown

# The names of the optimizers, without the numbers of their candidates.
OPTIMIZERS = (
    "start",
    "coverage",
    "labeled-few-shot",
    "bootstrap-few-shot",
    "gepa",
    "miprov2",
    "prompt-diet",
    "local-router",
)

# The seed of every optimizer that takes one, so that the same traces give the same program.
SEED = 9

# DSPy's default number of labelled demos. The tenant's maximum is tried as well.
FEW_DEMOS = 16

# So few demos make a short prompt hardly more than twice as long.
LEAN_DEMOS = 4

# Number of sets of bootstrapped demos to try. DSPy's random search tries 16.
BOOTSTRAPS = 6

# Examples that a teacher is asked for each bootstrapped demo, in addition to those for labelled demos.
BOOTSTRAP_TRIES = 2

# Fewest training examples for each optimizer.
MIN_FOR_BOOTSTRAP, MIN_FOR_GEPA, MIN_FOR_MIPRO = 30, 50, 100

# Lowest score of an answer that may become a demo, because a half right answer would also teach its wrong half.
FULLY_RIGHT = 1.0

# Largest fraction of the remaining budget for one search for instructions, because its winner must be judged as well.
SEARCH_SHARE = 0.5

# Dev examples with which DSPy's searches for instructions choose: the last ones, because the race starts with the first
# ones, on which the chosen program then has no unfair advantage.
SEARCH_DEV = 50

# Most runs of the program in one GEPA search, which may exceed this by one proposal and its evaluation.
GEPA_RUNS = 300

# Examples that GEPA reflects on at once. With DSPy's 3, a good program is often right on all, which teaches nothing.
GEPA_MINIBATCH = 8

# GEPA ends after this many proposals without a better program.
GEPA_PATIENCE = 10

# Number of instructions that MIPROv2 writes, and of its trials.
MIPRO_INSTRUCTIONS, MIPRO_TRIALS = 5, 6


@dataclass(frozen=True)
class OptimizerContext:
    """The input of all optimizers. `lm` answers; `teacher` writes instructions and makes demos.

    Local routers use the sentence `encoder`, if there is one.
    """

    spec: ModuleSpec
    labels: Sequence[Label]
    start: dspy.Module
    train: Sequence[Example]
    dev: Sequence[Example]
    lm: MeteredLM
    teacher: MeteredLM
    max_labeled_demos: int
    max_bootstrapped_demos: int
    encoder: Encoder | None = None


@dataclass(frozen=True)
class Optimizer:
    """A named way to make a program."""

    name: str
    compile: Callable[[], dspy.Module]


@dataclass(frozen=True)
class Improver:
    """A named way to improve a program's instructions without changing its demos."""

    name: str
    compile: Callable[[dspy.Module], dspy.Module]

    def applied_to(self, name: str, program: dspy.Module) -> Optimizer:
        return Optimizer(f"{name} + {self.name}", lambda: self.compile(program))


def demo_pickers(context: OptimizerContext) -> Iterator[Optimizer]:
    """Yield programs with labelled demos. Making them calls no model."""
    most = min(context.max_labeled_demos, len(context.train))
    yield Optimizer("start", context.start.deepcopy)
    for k in sorted({min(FEW_DEMOS, most), most}):
        yield Optimizer(f"coverage-{k}", lambda k=k: _coverage(context, k))
    yield Optimizer(f"labeled-few-shot-{most}", lambda: _labeled_few_shot(context, most))


def lean_pickers(context: OptimizerContext) -> Iterator[Optimizer]:
    """Yield a program with so few demos that it costs little more than one without. Making it calls no model."""
    if min(context.max_labeled_demos, len(context.train)) > LEAN_DEMOS:
        yield Optimizer(f"coverage-{LEAN_DEMOS}", lambda: _coverage(context, LEAN_DEMOS))


def bootstrappers(context: OptimizerContext) -> Iterator[Optimizer]:
    """Yield programs whose demos are the teacher's fully right answers, as in DSPy's random search."""
    if context.max_bootstrapped_demos > 0 and len(context.train) >= MIN_FOR_BOOTSTRAP:
        for seed in range(BOOTSTRAPS):
            yield Optimizer(f"bootstrap-few-shot-{seed}", lambda seed=seed: _bootstrap(context, seed))


def improvers(context: OptimizerContext) -> Iterator[Improver]:
    """Yield searches for instructions, if there are enough examples and both models follow instructions."""
    if context.lm.is_stand_in or context.teacher.is_stand_in:
        return  # instructions do not change the stand-in's answers, and it writes none
    if len(context.train) >= MIN_FOR_GEPA:
        yield Improver("gepa", lambda program: _gepa(context, program))
    if len(context.train) >= MIN_FOR_MIPRO:
        yield Improver("miprov2", lambda program: _mipro(context, program))


def routers(context: OptimizerContext, model: dspy.Module, scores: Sequence[float]) -> Iterator[Optimizer]:
    """Yield a local router alone, and such that leave to `model` what they are not sure about.

    One of these is as often right as possible on the first dev examples, where `scores` are those of `model`. The other
    one answers only where it is never worse there, so that it hardly ever disagrees. Making them calls no model. The
    module must be one that `can_be_routed`.
    """
    spec, labels = context.spec, context.labels
    router = train_router(spec, context.train, seed=SEED, encoder=context.encoder)
    sources = sorted({example.trace_id for example in context.train})
    allowed = {label.name for label in labels}
    known = context.dev[: len(scores)]
    chosen = [router.choose(example.inputs, allowed) for example in known]
    local = [
        spec.score(example.right, {spec.output_field: choice})
        for example, (choice, _) in zip(known, chosen, strict=True)
    ]
    shares = [share for _, share in chosen]
    thresholds = {
        "local-router": 0.0,
        "local-router + model": best_threshold(shares, local, scores),
        "careful local-router + model": careful_threshold(shares, local, scores),
    }
    for name, threshold in thresholds.items():
        if threshold == 0 or (threshold is not None and threshold > min(shares)):
            yield Optimizer(name, lambda at=threshold: Cascade(spec, labels, model, router, at, sources))


def _coverage(context: OptimizerContext, k: int) -> dspy.Module:
    program = context.start.deepcopy()
    for predictor in program.predictors():
        # A predictor's classes are the values of its first output. One between other predictors has no right answers.
        for field in [name for name in predictor.signature.output_fields if name in context.spec.outputs][:1]:
            known = [example for example in context.train if field in example.right]
            chosen = pick_coverage(known, k, lambda example, field=field: json.dumps(example.right[field]))
            predictor.demos = _trim_demos(context, predictor.signature, _dspy(context, chosen))
    return program


def pick_coverage(examples: Sequence[Example], k: int, label: Callable[[Example], str]) -> list[Example]:
    """Choose k demos that together show most of each label's wording. Calls no model.

    Labels take turns. Each adds the example whose words are most frequent among the label's examples and not shown
    yet. Examples with better labels count more.
    """
    remaining: dict[str, list[tuple[Example, frozenset[str]]]] = {}
    for example in examples:
        words = word_set(normalize_query(example.query))
        remaining.setdefault(label(example), []).append((example, words))
    frequency = {name: Counter(w for _, words in unused for w in words) for name, unused in remaining.items()}
    shown: dict[str, Counter[str]] = {name: Counter() for name in remaining}
    chosen: list[Example] = []
    turns = sorted(remaining, key=lambda name: (-len(remaining[name]), name))
    while len(chosen) < min(k, len(examples)):
        for name in turns:
            if not remaining[name] or len(chosen) == k:
                continue
            gains = [
                WORTH[example.provenance]
                * sum(frequency[name][w] / 2 ** (2 * shown[name][w]) for w in sorted(words))
                / (1 + len(words)) ** 0.5
                for example, words in remaining[name]
            ]
            example, words = remaining[name].pop(gains.index(max(gains)))
            chosen.append(example)
            shown[name].update(words)
    return chosen


def _labeled_few_shot(context: OptimizerContext, k: int) -> dspy.Module:
    optimizer = dspy.LabeledFewShot(k=k)
    return _with_demos_of(context, optimizer.compile(context.start, trainset=_dspy(context, context.train)))


def bootstrap_sizes(most: int) -> list[int]:
    """Return how many demos each bootstrapped program has at most."""
    return [_rng(seed).randint(1, most) for seed in range(BOOTSTRAPS)]


def _bootstrap(context: OptimizerContext, seed: int) -> dspy.Module:
    """Make one candidate of `dspy.BootstrapFewShotWithRandomSearch`: its shuffle and its size, but not its evaluation.

    It gets only enough examples to fill the demos, because a teacher that is rarely right would be asked all of them.
    More labelled demos than `FEW_DEMOS` would be most of what a search costs, and gain little (bench/README.md).
    """
    labeled = min(FEW_DEMOS, context.max_labeled_demos)
    trainset = _dspy(context, context.train)
    _rng(seed).shuffle(trainset)
    trainset = trainset[: labeled + BOOTSTRAP_TRIES * context.max_bootstrapped_demos]
    optimizer = dspy.BootstrapFewShot(
        metric=_noting_sources(scorer(context.spec)),
        metric_threshold=FULLY_RIGHT,
        teacher_settings={"lm": context.teacher.lm},
        max_bootstrapped_demos=bootstrap_sizes(context.max_bootstrapped_demos)[seed],
        max_labeled_demos=labeled,
        max_errors=_any_number(context),
    )
    with using(context.lm):
        return _with_demos_of(context, optimizer.compile(context.start, trainset=trainset))


def _gepa(context: OptimizerContext, program: dspy.Module) -> dspy.Module:
    predictors = len(program.predictors())
    # On examples that the program shows as demos, it is right whatever its instructions are.
    shown = {normalize_query(query) for query in queries_shown(program)}
    unseen = [example for example in context.train if normalize_query(example.query) not in shown]
    optimizer = dspy.GEPA(
        metric=feedback_metric(context.spec, program),
        max_metric_calls=min(GEPA_RUNS, _affordable(context) // predictors),
        reflection_lm=context.teacher.lm,
        reflection_minibatch_size=GEPA_MINIBATCH,
        use_merge=predictors > 1,
        num_threads=context.lm.threads_for(program),
        warn_on_score_mismatch=False,
        seed=SEED,
        gepa_kwargs={"stop_callbacks": [NoImprovementStopper(GEPA_PATIENCE)]},
    )
    with using(context.lm):
        return optimizer.compile(
            program.deepcopy(),
            trainset=_dspy(context, unseen or context.train),
            valset=_dspy(context, context.dev[-SEARCH_DEV:]),
        )


def _mipro(context: OptimizerContext, program: dspy.Module) -> dspy.Module:
    chosen_on = _dspy(context, context.dev[-SEARCH_DEV:])
    with using(context.lm):
        optimizer = dspy.MIPROv2(
            metric=scorer(context.spec),
            metric_threshold=FULLY_RIGHT,
            prompt_model=context.teacher.lm,
            task_model=context.lm.lm,
            teacher_settings={"lm": context.teacher.lm},
            # Without demos of its own, it keeps those of the program.
            max_bootstrapped_demos=0,
            max_labeled_demos=0,
            auto=None,
            num_candidates=MIPRO_INSTRUCTIONS,
            num_threads=context.lm.threads_for(program),
            max_errors=_any_number(context),
            track_stats=False,
            seed=SEED,
        )
        return optimizer.compile(
            program.deepcopy(),
            trainset=_dspy(context, context.train),
            valset=chosen_on,
            num_trials=max(1, min(MIPRO_TRIALS, _affordable(context) // (len(chosen_on) * len(program.predictors())))),
            minibatch=False,
            seed=SEED,
        )


def scorer(spec: ModuleSpec) -> Callable[..., float]:
    """Return the module's score as a DSPy metric."""

    def score(gold: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        answer = dict(prediction.items())
        return spec.score(_right(spec, gold), answer) if all(name in answer for name in spec.outputs) else 0.0

    return score


def feedback_metric(spec: ModuleSpec, program: dspy.Module) -> Callable[..., dspy.Prediction]:
    """Return the module's score with feedback on wrong answers, as a metric for GEPA.

    Feedback for one predictor is only about its own outputs, if any of these can be right. The score is always that of
    the whole program.
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


def _with_demos_of(context: OptimizerContext, compiled: dspy.Module) -> dspy.Module:
    """Return a new copy of the start with the demos of a compiled program.

    This is needed because DSPy cannot bootstrap from a compiled program, and uses the whole example as a demo.
    """
    program = context.start.deepcopy()
    for predictor, other in zip(program.predictors(), compiled.predictors(), strict=True):
        predictor.demos = _trim_demos(context, predictor.signature, other.demos)
    return program


def _trim_demos(
    context: OptimizerContext, signature: type[dspy.Signature], demos: Sequence[dspy.Example]
) -> list[dspy.Example]:
    """Reduce demos to the predictor's own fields and their source. Demos with no answer but a confidence are left out.

    If a demo's fields lack a part of the query, because other predictors get it, the demo keeps the query under a key
    of its own, so that the examples that a program has seen are known.
    """
    answers = set(signature.output_fields) - {"confidence"}
    by_span = {example.span_id: example for example in context.train}
    trimmed = []
    for demo in demos:
        if answers.intersection(demo.keys()):
            own = dspy.Example(**{name: demo[name] for name in signature.fields if name in demo})
            trimmed.append(own)
            example = by_span.get(demo.get(SOURCE))
            if example is None:
                continue
            if not _quotes_others(own, example, context.train):
                own[SOURCE] = example.span_id
            if example.query != demo_query(signature, own.toDict()):
                own[ASKED] = example.query
    return trimmed


def _quotes_others(demo: dspy.Example, example: Example, train: Sequence[Example]) -> bool:
    """Whether a demo quotes other examples than its own, which a teacher saw when it wrote the answer."""
    known = {str(value) for value in (*example.inputs.values(), *example.right.values(), *example.assumed.values())}
    written = " ".join(text for value in demo.values() if (text := str(value)) not in known)
    return any(quotes(written, other.query) for other in train if other.span_id != example.span_id)


def _noting_sources(metric: Callable[..., float]) -> Callable[..., float]:
    """Return a metric that also records the example in the trace, because DSPy makes demos from the trace."""

    def judge(gold: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
        for _, inputs, _ in trace or ():
            inputs[SOURCE] = gold[SOURCE]
        return metric(gold, prediction, trace)

    return judge


def _rng(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  for reproducible picks, not for secrets


def _affordable(context: OptimizerContext) -> int:
    return int(context.lm.meter.calls_left * SEARCH_SHARE)


def _any_number(context: OptimizerContext) -> int:
    """Return more errors than can occur, because an unreadable answer is wrong but must not end a search."""
    return len(context.train) * 100


def _dspy(context: OptimizerContext, examples: Sequence[Example]) -> list[dspy.Example]:
    return [dspy_example(context.spec, example) for example in examples]
