"""Asking a program many examples."""

import io
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

import dspy

from autoopt_pipeline.errors import LMUnavailable
from autoopt_pipeline.lm.adapter import DemoCachingAdapter
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.spec import Example, ModuleSpec, Provenance

DEMO_CONFIDENCE = {Provenance.HUMAN: 0.95, Provenance.JUDGE: 0.9, Provenance.OUTCOME: 0.8}
"""The confidence that a demo shows, by who labelled it: a demo without one teaches the model to leave it out."""


MAX_REFUSED = 0.02
"""Share of requests that a model may refuse before that says more of the model's set-up than of the requests."""


@dataclass(frozen=True)
class Answer:
    """What a program said; `label` is None when it gave no valid answer."""

    label: str | None
    confidence: float | None


def dspy_example(spec: ModuleSpec, example: Example) -> dspy.Example:
    """An example as DSPy's optimizers take it, usable as a demo."""
    fields = {
        **example.inputs,
        spec.output_field: example.label,
        "confidence": DEMO_CONFIDENCE[example.provenance],
    }
    return dspy.Example(**fields).with_inputs(*example.inputs)


def answer_all(spec: ModuleSpec, program: dspy.Module, examples: Sequence[Example], lm: MeteredLM) -> list[Answer]:
    """Ask every example, in order.

    An answer that cannot be parsed, and a request that the model refuses, are wrong answers. A call that failed
    even after retries is not: raises `LMUnavailable`, because nothing is known of the program then, and so does
    a model that refuses more than `MAX_REFUSED` of the requests. `BudgetExhausted` passes through.
    """
    if not examples:
        return []
    refused_before = lm.meter.refused_calls
    evaluate = dspy.Evaluate(
        devset=[dspy_example(spec, example) for example in examples],
        metric=lambda example, prediction, trace=None: 0.0,
        num_threads=lm.threads,
        max_errors=len(examples) + 1,
        display_progress=False,
        provide_traceback=False,
    )
    with raising_outages(lm), using(lm):
        results = evaluate(program).results
    if (refused := lm.meter.refused_calls - refused_before) > MAX_REFUSED * len(examples):
        raise _unavailable(lm, f"{refused} of {len(examples)} requests were refused")
    return [Answer(prediction.get(spec.output_field), prediction.get("confidence")) for _, prediction, _ in results]


def share_right(examples: Sequence[Example], answers: Sequence[Answer]) -> float:
    """Share of right answers, 0 to 1."""
    right = sum(answer.label == example.label for example, answer in zip(examples, answers, strict=True))
    return right / len(examples) if examples else 0.0


@contextmanager
def raising_outages(lm: MeteredLM) -> Generator[None, None, None]:
    """Raise `LMUnavailable` when calls failed inside, which DSPy takes for wrong answers."""
    before = lm.meter.failed_calls
    yield
    if failed := lm.meter.failed_calls - before:
        raise _unavailable(lm, f"{failed} calls failed")


def _unavailable(lm: MeteredLM, what: str) -> LMUnavailable:
    return LMUnavailable(
        f"language model {lm.name}: {what}, the last with {lm.meter.last_failure[:200]}",
        "check the endpoint and its key; the next attempt starts anew",
    )


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
