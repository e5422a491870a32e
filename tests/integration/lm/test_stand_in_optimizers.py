"""DSPy's optimizers over the stand-in: they gain through demos, and not through instructions."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, sample_truths
from autoopt_pipeline.evaluation.runner import using
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.tenants.config import LMSettings

BASELINE = "Choose the one agent that should take the query."


def feedback(example: dspy.Example, prediction: dspy.Prediction, *_: Any) -> dspy.Prediction:
    if prediction.agent == example.agent:
        return dspy.Prediction(score=1.0, feedback="Right.")
    text = f'Wrong: agent is "{prediction.agent}", right is "{example.agent}".'
    return dspy.Prediction(score=0.0, feedback=text)


def exact(example: dspy.Example, prediction: dspy.Prediction, *_: Any) -> bool:
    return prediction.agent == example.agent


@pytest.fixture(scope="module")
def queries() -> list[dspy.Example]:
    return [
        dspy.Example(query=truth.query, agent=truth.answers["agent"], confidence=0.9).with_inputs("query")
        for truth in sample_truths(400, random.Random(2))
    ]


def compiled(optimizer: Callable[..., Any], queries: Sequence[dspy.Example], **options: Any) -> dspy.Module:
    lm = metered_lm(LMSettings(model="stand-in"), Meter(10_000, 10**9))
    with using(lm):
        search = optimizer(num_threads=1, seed=9, **options)
        program = get_module("routing").build_program([Label(name) for name in SAMPLE_AGENTS])
        return search.compile(program, trainset=list(queries[:150]), valset=list(queries[150:200]))


def right(program: dspy.Module, queries: Sequence[dspy.Example]) -> int:
    with using(metered_lm(LMSettings(model="stand-in"), Meter(10_000, 10**9))):
        return sum(exact(example, program(query=example.query)) for example in queries)


def reflection_lm() -> dspy.LM:
    return metered_lm(LMSettings(model="stand-in"), Meter(1000, 10**9)).lm


def test_gepa_ends_and_leaves_the_instructions_because_none_that_the_stand_in_writes_is_better(
    queries: list[dspy.Example],
) -> None:
    found = compiled(dspy.GEPA, queries, metric=feedback, max_metric_calls=100, reflection_lm=reflection_lm())
    assert found.predictors()[0].signature.instructions == BASELINE


def test_miprov2_runs_to_its_end_and_gains_through_demos(queries: list[dspy.Example]) -> None:
    found = compiled(
        dspy.MIPROv2,
        queries,
        metric=exact,
        auto="light",
        prompt_model=reflection_lm(),
        max_bootstrapped_demos=4,
        max_labeled_demos=16,
    )
    assert found.predictors()[0].demos
    assert not any(trial.get("score") == 0 for trial in found.trial_logs.values())
    baseline = get_module("routing").build_program([Label(name) for name in SAMPLE_AGENTS])
    assert right(found, queries[200:]) > right(baseline, queries[200:])


_WITHOUT_DSPY = """
from autoopt_pipeline.lm.stand_in.voting import answer, read_lesson
system = '''Your output fields are:
1. `agents` (list[Literal['a_agent', 'b_agent']]): x
2. `kind` (Literal['x', 'y']): x
3. `confidence` (float): x
All interactions will be structured'''
turns = []
for n in range(30):
    turns += [("user", f"[[ ## query ## ]]\\nsome words {n} {n * 7 % 5} more words here"),
              ("assistant", f'[[ ## agents ## ]]\\n["{"ab"[n % 2]}_agent"]\\n\\n[[ ## kind ## ]]\\n{"xy"[n % 3 % 2]}')]
print([answer(read_lesson(tuple(turns), system), {"query": f"more {n} words"}) for n in range(20)])
"""


def test_answers_are_the_same_bytes_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _WITHOUT_DSPY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1
