"""Which held-out traces can judge."""

import dspy

from autoopt_pipeline.evaluation.split import HoldoutExample, Split
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.optimization.holdout import without_quoted
from tests.support.sample_decisions import example
from tests.support.stored_programs import LABELS

QUOTED, OTHER = "play the recording of the meeting", "find the contract of the new tenant"


def held_out(query: str) -> HoldoutExample:
    return HoldoutExample(example(query), (query,))


def program(instructions: str) -> dspy.Module:
    made = get_module("routing").build_program(LABELS)
    for predictor in made.predictors():
        predictor.signature = predictor.signature.with_instructions(instructions)
    return made


SPLIT = Split(
    train=(),
    dev=(),
    holdout=(held_out(QUOTED), held_out(OTHER)),
    guard=(held_out(QUOTED),),
    duplicates=0,
    near_duplicates=0,
    dropped_to_protect_holdout=0,
    shown=0,
    drawable=(held_out(QUOTED), held_out(OTHER)),
)


def test_a_query_that_either_program_quotes_judges_neither() -> None:
    plain, quoting = program("Choose an agent."), program(f"Choose an agent. '{QUOTED}' is for the search agent.")
    for programs in ((plain, quoting), (quoting, plain)):
        usable, notes = without_quoted(SPLIT, *programs)
        assert (usable.holdout, usable.guard, usable.drawable) == (SPLIT.holdout[1:], (), SPLIT.drawable[1:])
        assert notes == ["2 held-out queries were left out because a program's instructions quote them"]


def test_nothing_is_said_where_nothing_is_quoted() -> None:
    assert without_quoted(SPLIT, program("Choose an agent.")) == (SPLIT, [])
