"""The stored form of a local router, whoever wrote it."""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from pydantic import ValidationError

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.modules.cascade import Cascade, cascades_in
from autoopt_pipeline.modules.local_router import BUCKETS
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.optimization.router_training import train_router
from autoopt_pipeline.registry.records import Program
from autoopt_pipeline.registry.serialization import deserialize, serialize, traces_learnt
from autoopt_pipeline.tenants.labels import labels_of
from tests.support.labeled_requests import CONFIG, LABELS, ROUTING, UNIFIED, examples

SHOWN = examples(ROUTING, 60)


def cascade(threshold: float = 0.5, labels: Sequence[Label] = LABELS) -> Cascade:
    router = train_router(ROUTING, SHOWN, seed=9)
    sources = [example.trace_id for example in SHOWN]
    return Cascade(ROUTING, labels, ROUTING.build_program(labels), router, threshold, sources)


@pytest.fixture(scope="module")
def stored() -> Program:
    return serialize(ROUTING, "acme", LABELS, cascade())


def test_a_stored_router_answers_as_before(stored: Program) -> None:
    read = Program.model_validate_json(stored.encode()).model_copy(update={"router_sources": stored.router_sources})
    program = deserialize(ROUTING, LABELS, read)
    (restored,) = cascades_in(program)
    (known,) = cascades_in(cascade())
    names = [label.name for label in LABELS]
    for example in SHOWN:
        assert restored.router.choose(example.inputs, names) == known.router.choose(example.inputs, names)
    assert (restored.threshold, restored.sources) == (0.5, known.sources)
    assert serialize(ROUTING, "acme", LABELS, program).digest == stored.digest


def test_neither_a_query_nor_a_trace_is_in_the_file(stored: Program) -> None:
    text = stored.encode().decode()
    assert not any(example.query in text or example.trace_id in text for example in SHOWN)
    assert traces_learnt(cascade()) == {example.trace_id for example in SHOWN}


def test_a_composed_program_keeps_the_router_of_a_part() -> None:
    labels = labels_of(UNIFIED, CONFIG)
    program = UNIFIED.build_program(labels)
    setattr(program, "routing", cascade(0.0, labels))  # noqa: B010 - as `compose` does
    stored = serialize(UNIFIED, "acme", labels, program)
    restored = deserialize(UNIFIED, labels, stored)
    assert list(stored.routers) == ["routing"]
    assert isinstance(restored.routing, Cascade)
    assert serialize(UNIFIED, "acme", labels, restored).digest == stored.digest
    assert [name for name, _ in restored.named_predictors()] == [
        name for name, _ in UNIFIED.build_program(labels).named_predictors()
    ]


@pytest.mark.parametrize("threshold", [0.0, 0.99999])
def test_what_it_is_not_sure_about_goes_to_the_model(threshold: float) -> None:
    program = cascade(threshold)

    class Model(dspy.Module):
        def forward(self, **inputs: str) -> dspy.Prediction:
            return dspy.Prediction(agent="the model's", confidence=0.5)

    program.model = Model()
    answers = {program(**example.inputs).agent == "the model's" for example in SHOWN}
    assert answers == {threshold > 0}


@pytest.mark.parametrize(
    "damage",
    [
        {"scale": [1.0]},
        {"bias": []},
        {"classes": ["one"]},
        {"bias": [float("inf")] * 5},
        {"weights": base64.b64encode(zlib.compress(b"short")).decode()},
        {"rarity": base64.b64encode(zlib.compress(bytes(BUCKETS + 1))).decode()},
    ],
)
def test_a_damaged_router_is_refused(stored: Program, damage: dict[str, Any]) -> None:
    document = json.loads(stored.encode())
    document["routers"]["routing"].update(damage)
    with pytest.raises(InvalidArtifact, match="local router of a program is damaged"):
        deserialize(ROUTING, LABELS, Program.model_validate(document))


@pytest.mark.parametrize(
    "damage",
    [
        {"weights": "no base 64"},
        {"weights": base64.b64encode(b"not compressed").decode()},
        {"weights": base64.b64encode(zlib.compress(bytes(2**30))).decode()},
        {"threshold": 1.5},
        {"temperature": 0.0},
    ],
    ids=["text", "uncompressed", "a gigabyte", "threshold", "temperature"],
)
def test_a_file_that_is_no_router_is_refused(stored: Program, damage: dict[str, Any]) -> None:
    document = json.loads(stored.encode())
    document["routers"]["routing"].update(damage)
    with pytest.raises(ValidationError):
        Program.model_validate(document)
