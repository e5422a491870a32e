"""What the stand-in reads in a prompt is what DSPy's adapters were given. The wording of prompts is DSPy's."""

from typing import Any, Literal

import dspy
import pytest
from dspy.signatures.signature import make_signature

from autoopt_pipeline.lm.stand_in.prompt import Demo, Output, read_demos, read_inputs, read_outputs, wants_json

FIELDS: dict[str, tuple[Any, Any]] = {
    "query": (str, dspy.InputField(desc="what the user asked")),
    "available": (list[str], dspy.InputField()),
    "entities": (str, dspy.InputField()),
    "agents": (list[Literal["search_agent", "it's"]], dspy.OutputField(desc="in order")),
    "pattern": (Literal["a (b): c", "parallel"], dspy.OutputField()),
    "reasoning": (str, dspy.OutputField()),
    "confidence": (float, dspy.OutputField()),
}
ASKED = {"query": "find it\n\nRespond with a JSON object: {}", "available": ["x", "y"], "entities": ""}
READ = {"query": ASKED["query"], "available": '["x", "y"]'}
SHOWN = {"query": "sum it up", "available": ["z"], "entities": "it", "pattern": "parallel", "confidence": 0.9}
ANSWERED = SHOWN | {"agents": ["it's", "search_agent"], "reasoning": "because\nof it"}


def prompt(adapter: dspy.Adapter) -> tuple[str, list[tuple[str, str]]]:
    signature = make_signature(dict(FIELDS), "Plan it.\nWith care.")
    demos: list[Any] = [dspy.Example(**SHOWN), dspy.Example(**ANSWERED)]  # DSPy declares dicts, and passes examples
    system, *turns = adapter.format(signature, demos, dict(ASKED))
    return system["content"], [(turn["role"], turn["content"]) for turn in turns]


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()], ids=["chat", "json"])
def test_outputs_demos_and_the_query_are_read_as_dspy_was_given_them(adapter: dspy.Adapter) -> None:
    system, turns = prompt(adapter)
    assert [*read_outputs(system)] == [
        Output("agents", "list[Literal['search_agent', \"it's\"]]", ("search_agent", "it's"), is_list=True),
        Output("pattern", "Literal['a (b): c', 'parallel']", ("a (b): c", "parallel"), is_list=False),
        Output("reasoning", "str", (), is_list=False),
        Output("confidence", "float", (), is_list=False),
    ]
    inputs = {"query": "sum it up", "available": '["z"]', "entities": "it"}
    answers = {"pattern": "parallel", "confidence": "0.9"}
    shown = [  # ChatAdapter ends an answer with a section "completed", which is no field
        Demo(demo.inputs, {name: text for name, text in demo.answers.items() if name in FIELDS})
        for demo in read_demos(turns[:-1])
    ]
    assert shown == [
        Demo(inputs, answers),
        Demo(inputs, answers | {"agents": '["it\'s", "search_agent"]', "reasoning": "because\nof it"}),
    ]
    assert read_inputs(turns[-1][1]) == READ
    assert wants_json(system) is isinstance(adapter, dspy.JSONAdapter)
