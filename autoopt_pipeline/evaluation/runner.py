"""Asks a program many examples, and scores its answers."""

import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import dspy
from dspy.lm15 import Response

from autoopt_pipeline.errors import AnswersUnreadable, LMUnavailable
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.cost import DecisionCost, decision_cost, measured
from autoopt_pipeline.lm.adapters import AnswerAdapter
from autoopt_pipeline.lm.failures import RequestRefused
from autoopt_pipeline.lm.metering import Outage, answer_text, listening
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.answer_format import CHAT, answer_format
from autoopt_pipeline.modules.coercion import number
from autoopt_pipeline.modules.spec import Example, ModuleSpec, Provenance
from autoopt_pipeline.registry.program_cost import ProgramCost
from autoopt_pipeline.registry.serialization import SOURCE
from autoopt_pipeline.text import one_line

# The confidence that a demo shows, by its label's source. A demo without one teaches the model to leave it out.
DEMO_CONFIDENCE = {Provenance.HUMAN: 0.95, Provenance.JUDGE: 0.9, Provenance.OUTCOME: 0.8}

# Field of a `dspy.Example` that names its assumed values, not known to be right. DSPy hides fields named dspy_*.
ASSUMED = "dspy_assumed"

# Fraction of requests that a model may refuse. If it refuses more, the cause is its set-up and not the requests.
MAX_REFUSED = 0.02

# With `must_be_readable`, the first answers are checked after this many requests.
FIRST_ASKED = 24

# Fewest answers for this check.
MIN_ASKED = 10

# The check fails if no larger fraction of the answers can be read, because their scores would measure only the format.
MIN_READ = 0.1


class Unread(StrEnum):
    """Why an answer cannot be scored."""

    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    TOO_LONG = "too_long"
    EMPTY = "empty"


@dataclass(frozen=True)
class Answer:
    """A program's answer. `values` is None if it is invalid, `confidence` if it is not a number from 0 to 1.

    `unread` is the reason why it is invalid, and `detail` the error message or the beginning of the model's text.
    `cost` is None if it is unknown. Equal answers may differ in it.
    """

    values: dict[str, Any] | None
    confidence: float | None
    unread: Unread | None = None
    detail: str = ""
    cost: DecisionCost | None = field(default=None, compare=False)


def dspy_example(spec: ModuleSpec, example: Example) -> dspy.Example:
    """Return the example for DSPy's optimizers, usable as a demo. `ASSUMED` names the values that must not judge."""
    answers = {**example.assumed, **example.right, "confidence": DEMO_CONFIDENCE[example.provenance]}
    assumed = {ASSUMED: tuple(example.assumed)} if example.assumed else {}
    source = {SOURCE: example.span_id}
    return dspy.Example(**example.inputs, **answers, **assumed, **source).with_inputs(*example.inputs)


def answer_all(
    spec: ModuleSpec,
    program: dspy.Module,
    examples: Sequence[Example],
    lm: MeteredLM,
    *,
    must_be_readable: bool = False,
    answered: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Ask the program every example, and return the answers in order.

    `answered` is called after each answer, in the thread that asked for it. An unreadable answer and a refused request
    count as wrong answers. Raises `LMUnavailable` or `LMNotConfigured` if a call fails even after retries, because
    nothing is known about the program then, and `LMUnavailable` if the model refuses more than one request and more
    than `MAX_REFUSED` of all. A request that is too long for the model is the program's fault and does not count as
    refused. With `must_be_readable`, which is for the program that serves, raises `AnswersUnreadable` early if hardly
    any answer can be read. `BudgetExhausted` passes through.
    """
    answers: list[Answer] = []
    with raising_outages(), using(lm):
        if must_be_readable:
            answers = _ask(spec, program, examples[:FIRST_ASKED], lm, answered)
            _check_readable(answers, program, lm)
        answers += _ask(spec, program, examples[len(answers) :], lm, answered)
    refused = [answer for answer in answers if answer.unread is Unread.REFUSED]
    if len(refused) > max(1, MAX_REFUSED * len(examples)):
        raise LMUnavailable(
            f"language model {lm.name}: {len(refused)} of {len(examples)} requests were refused, "
            f"the last with {refused[-1].detail}",
            "find out why the endpoint refuses them; the next attempt starts again",
        )
    return answers


def unread_counts(answers: Iterable[Answer]) -> dict[str, int]:
    """Count the answers that could not be scored by reason. Empty if all could be."""
    return dict(sorted(Counter(answer.unread.value for answer in answers if answer.unread).items()))


def costs_of(answers: Mapping[str, Sequence[Answer]]) -> dict[str, ProgramCost]:
    """Return what a decision costs, by program, as far as it is known."""
    costs = {program: measured(answer.cost for answer in given) for program, given in answers.items()}
    return {program: cost for program, cost in costs.items() if cost}


def _ask(
    spec: ModuleSpec,
    program: dspy.Module,
    examples: Sequence[Example],
    lm: MeteredLM,
    answered: Callable[[], None],
) -> list[Answer]:
    def ask(example: Example) -> Answer:
        try:
            return _ask_one(spec, program, example)
        finally:
            answered()

    threads = lm.threads_for(program)
    if threads == 1:
        return [ask(example) for example in examples]
    with ThreadPoolExecutor(threads, thread_name_prefix="autoopt-ask") as pool:
        # Each call gets a copy of the context, which holds DSPy's settings.
        asked = [pool.submit(copy_context().run, ask, example) for example in examples]
        try:
            return [future.result() for future in asked]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _ask_one(spec: ModuleSpec, program: dspy.Module, example: Example) -> Answer:
    began = time.perf_counter()
    with listening() as heard:
        try:
            prediction = program(**example.inputs)
        except RequestRefused as e:
            return Answer(None, None, Unread.TOO_LONG if e.too_long else Unread.REFUSED, one_line(str(e)))
        except Exception as e:  # noqa: BLE001 - what DSPy and a module's own code raise over an answer
            detail = _beginning(heard.responses) or one_line(f"{type(e).__name__}: {e}")
            answer = Answer(None, None, _unread_reason(heard.responses), detail)
        else:
            answer = _answer(spec, prediction)
        return replace(answer, cost=decision_cost(heard, time.perf_counter() - began))


def _unread_reason(heard: Sequence[Response]) -> Unread:
    if heard and heard[-1].finish_reason == "length":
        return Unread.TRUNCATED
    if heard and heard[-1].finish_reason == "content_filter":
        return Unread.REFUSED
    return Unread.EMPTY if heard and not answer_text(heard[-1]).strip() else Unread.UNREADABLE


def _beginning(heard: Sequence[Response]) -> str:
    text = answer_text(heard[-1]).strip() if heard else ""
    return f"it began with {one_line(text, length=80)!r}" if text else ""


def _check_readable(answers: Sequence[Answer], program: dspy.Module, lm: MeteredLM) -> None:
    """Raise `AnswersUnreadable` if so few answers can be read that scores would mean nothing."""
    unread = [answer for answer in answers if answer.unread]
    if len(answers) < MIN_ASKED or len(answers) - len(unread) > MIN_READ * len(answers):
        return
    causes = Counter(answer.unread for answer in unread if answer.unread)
    cause = causes.most_common(1)[0][0]
    last = next(answer.detail for answer in reversed(unread) if answer.unread is cause)
    counts = ", ".join(f"{count} {cause.value.replace('_', ' ')}" for cause, count in causes.most_common())
    raise AnswersUnreadable(
        f"language model {lm.name}: {len(unread)} of the first {len(answers)} answers cannot be read ({counts})"
        + (f"; the last one: {last}" if last else ""),
        _remedy(cause, program, lm),
    )


def _remedy(cause: Unread, program: dspy.Module, lm: MeteredLM) -> str:
    if cause in {Unread.TRUNCATED, Unread.EMPTY}:
        longest = lm.endpoint.values.get("max_tokens") if lm.endpoint else None
        now = f"lm.max_tokens is {longest}" if longest else "lm.max_tokens is not set"
        return f"{now}: raise it, because reasoning counts too, or use another model; see 'autoopt doctor --call-lm'"
    if cause is Unread.TOO_LONG:
        return "use a model with a larger context, or lower dspy_max_labeled_demos and dspy_max_bootstrapped_demos"
    if cause is Unread.REFUSED:
        return "find out why the endpoint refuses the requests"
    if any(answer_format(predictor.signature) == CHAT for predictor in program.predictors()):
        return (
            "set lm.answer_format=json_schema, and Serving(baseline_format='json_schema') in the application, "
            "or use a model that follows DSPy's chat format"
        )
    return "use a model that follows a JSON schema"


def _answer(spec: ModuleSpec, prediction: dspy.Prediction) -> Answer:
    if missing := [name for name in spec.outputs if name not in prediction]:
        return Answer(None, None, Unread.UNREADABLE, f"the program's answer lacks {', '.join(missing)}")
    confidence = number(prediction.get("confidence"))
    return Answer(
        {name: prediction[name] for name in spec.outputs},
        confidence if confidence is not None and 0 <= confidence <= 1 else None,
    )


def grade(spec: ModuleSpec, examples: Sequence[Example], answers: Sequence[Answer]) -> list[ScoredAnswer]:
    """Score answers from 0 to 1. An invalid answer scores 0."""
    return [_grade(spec, example, answer) for example, answer in zip(examples, answers, strict=True)]


def grade_both(spec: ModuleSpec, example: Example, incumbent: Answer, candidate: Answer) -> PairedCase:
    """Score both programs' answers to one example."""
    return PairedCase(example.label, _grade(spec, example, incumbent), _grade(spec, example, candidate))


def _grade(spec: ModuleSpec, example: Example, answer: Answer) -> ScoredAnswer:
    if answer.values is None:
        return ScoredAnswer(0.0, None, answer.confidence)
    return ScoredAnswer(spec.score(example.right, answer.values), spec.label(answer.values), answer.confidence)


@contextmanager
def raising_outages() -> Generator[None, None, None]:
    """Raise `LMUnavailable` or `LMNotConfigured` when a model that is asked inside cannot answer."""
    try:
        yield
    except Outage as e:
        raise e.error from None


@contextmanager
def using(lm: MeteredLM) -> Generator[None, None, None]:
    """Run DSPy code with this model and its others, without history, trace or output of DSPy's optimizers."""
    named = {name: model.lm for name, model in lm.models.items()}
    quiet = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("dspy", "dspy.teleprompt", "dspy.evaluate", "dspy.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            dspy.context(lm=lm.lm, adapter=AnswerAdapter(lm.lm, named), disable_history=True, trace=None),
            redirect_stdout(quiet),
            redirect_stderr(quiet),
        ):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
