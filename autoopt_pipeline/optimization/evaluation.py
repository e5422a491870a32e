"""Asking a program many examples."""

import io
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import dspy

from autoopt_pipeline.errors import LMUnavailable
from autoopt_pipeline.lm.adapter import DemoCachingAdapter
from autoopt_pipeline.lm.meter import Outage
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.spec import Example, ModuleSpec, Provenance
from autoopt_pipeline.modules.values import number
from autoopt_pipeline.optimization.cases import Graded

DEMO_CONFIDENCE = {Provenance.HUMAN: 0.95, Provenance.JUDGE: 0.9, Provenance.OUTCOME: 0.8}
"""The confidence that a demo shows, by who labelled it: a demo without one teaches the model to leave it out."""

ASSUMED = "dspy_assumed"
"""Field of a `dspy.Example` with the names of values that nobody said are right. DSPy shows no field called dspy_*."""

MAX_REFUSED = 0.02
"""Share of requests that a model may refuse before that says more of the model's set-up than of the requests."""


@dataclass(frozen=True)
class Answer:
    """What a program said; `values` is None when it gave no valid answer, `confidence` where it is no share of 1."""

    values: dict[str, Any] | None
    confidence: float | None


def dspy_example(spec: ModuleSpec, example: Example) -> dspy.Example:
    """An example as DSPy's optimizers take it, usable as a demo; `ASSUMED` names the values that may not judge."""
    answers = {**example.assumed, **example.right, "confidence": DEMO_CONFIDENCE[example.provenance]}
    assumed = {ASSUMED: tuple(example.assumed)} if example.assumed else {}
    return dspy.Example(**example.inputs, **answers, **assumed).with_inputs(*example.inputs)


def answer_all(
    spec: ModuleSpec,
    program: dspy.Module,
    examples: Sequence[Example],
    lm: MeteredLM,
    *,
    answered: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Ask every example, in order. `answered` is called after each, in whatever thread asked it.

    An answer that cannot be parsed, and a request that the model refuses, are wrong answers. A call that failed
    even after retries is not: raises `LMUnavailable`, because nothing is known of the program then, and so does
    a model that refuses more than `MAX_REFUSED` of the requests, and more than one. `BudgetExhausted` passes through.
    """
    if not examples:
        return []
    refused_before = lm.meter.refused_calls

    def counted(**inputs: Any) -> dspy.Prediction:
        try:
            return program(**inputs)
        finally:
            answered()  # also where the answer cannot be read: DSPy calls no metric then

    evaluate = dspy.Evaluate(
        devset=[dspy_example(spec, example) for example in examples],
        metric=lambda example, prediction, trace=None: 0.0,
        num_threads=lm.threads,
        max_errors=len(examples) + 1,
        display_progress=False,
        provide_traceback=False,
    )
    with raising_outages(), using(lm):
        results = evaluate(counted).results
    if (refused := lm.meter.refused_calls - refused_before) > max(1, MAX_REFUSED * len(examples)):
        last = lm.meter.last_refusal[:200]
        raise _unavailable(f"{lm.name}: {refused} of {len(examples)} requests were refused, the last with {last}")
    return [_answer(spec, prediction) for _, prediction, _ in results]


def _answer(spec: ModuleSpec, prediction: dspy.Prediction) -> Answer:
    if any(name not in prediction for name in spec.outputs):
        return Answer(None, None)
    confidence = number(prediction.get("confidence"))
    return Answer(
        {name: prediction[name] for name in spec.outputs},
        confidence if confidence is not None and 0 <= confidence <= 1 else None,
    )


def grade(spec: ModuleSpec, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Graded]:
    """Score answers from 0 to 1; no valid answer is a wrong one."""
    return [_grade(spec, example, answer) for example, answer in zip(examples, answers, strict=True)]


def _grade(spec: ModuleSpec, example: Example, answer: Answer) -> Graded:
    if answer.values is None:
        return Graded(0.0, None, answer.confidence)
    return Graded(spec.score(example.right, answer.values), spec.label(answer.values), answer.confidence)


@contextmanager
def raising_outages() -> Generator[None, None, None]:
    """Raise `LMUnavailable` when a call failed inside, whoever of the run's models was asked."""
    try:
        yield
    except Outage as e:
        raise _unavailable(str(e)) from None


def _unavailable(what: str) -> LMUnavailable:
    return LMUnavailable(f"language model {what}", "check the endpoint and its key; the next attempt starts anew")


@contextmanager
def using(lm: MeteredLM) -> Generator[None, None, None]:
    """Run DSPy code with this model: no history, no trace, and nothing printed by its optimizers."""
    quiet = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("dspy", "dspy.teleprompt", "dspy.evaluate", "dspy.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            dspy.context(lm=lm.lm, adapter=DemoCachingAdapter(), disable_history=True, trace=None),
            redirect_stdout(quiet),
            redirect_stderr(quiet),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
