"""The stored form of a local router, whoever wrote it."""

import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
from pydantic import ValidationError

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.modules.cascade import Cascade, cascades_in
from autoopt_pipeline.modules.encoder import open_encoder
from autoopt_pipeline.modules.local_router import BUCKETS
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.optimization.router_training import train_router
from autoopt_pipeline.registry.records import Program
from autoopt_pipeline.registry.serialization import compose, deserialize, instantiate, serialize, traces_learnt
from autoopt_pipeline.tenants.labels import labels_of
from tests.support.labeled_requests import CONFIG, LABELS, ROUTING, UNIFIED, examples
from tests.support.tiny_encoder import DIMENSION, tiny_encoder

SHOWN = examples(ROUTING, 60)


def cascade(threshold: float = 0.5, labels: Sequence[Label] = LABELS, encoder: Path | None = None) -> Cascade:
    router = train_router(ROUTING, SHOWN, seed=9, encoder=open_encoder(encoder) if encoder else None)
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


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), [["video"], ["report"]])


@pytest.fixture(scope="module")
def with_encoder(encoder: Path) -> Program:
    return serialize(ROUTING, "acme", LABELS, cascade(encoder=encoder))


def test_a_stored_router_with_an_encoder_answers_as_before(with_encoder: Program, encoder: Path) -> None:
    program = deserialize(ROUTING, LABELS, Program.model_validate_json(with_encoder.encode()), encoder=encoder)
    (restored,) = cascades_in(program)
    known = cascade(encoder=encoder)
    names = [label.name for label in LABELS]
    for example in SHOWN:
        assert restored.router.choose(example.inputs, names) == known.router.choose(example.inputs, names)
    router = with_encoder.routers["routing"]
    assert len(router.weights) == (BUCKETS + DIMENSION) * len(router.classes)
    assert serialize(ROUTING, "acme", LABELS, program).digest == with_encoder.digest


def test_a_router_is_refused_without_its_encoder(with_encoder: Program, tmp_path: Path) -> None:
    needed = with_encoder.routers["routing"].encoder
    assert needed
    another = tiny_encoder(tmp_path / "another", seed=2)
    nothing = tmp_path / "nothing"
    for folder, why in ((None, "none is set"), (another, f"{another} holds"), (nothing, f"encoder {nothing}: ")):
        with pytest.raises(InvalidArtifact) as refused:
            deserialize(ROUTING, LABELS, with_encoder, encoder=folder)
        assert f"needs the sentence encoder {needed.sha256[:12]}" in refused.value.what
        assert why in refused.value.what


def test_a_part_without_its_encoder_has_its_baseline_instead(with_encoder: Program, encoder: Path) -> None:
    refused: list[InvalidArtifact] = []
    parts = {"routing": with_encoder}
    without = compose(UNIFIED, LABELS, parts, lambda part, why: refused.append(why))
    assert not cascades_in(without)
    assert len(refused) == 1
    assert cascades_in(compose(UNIFIED, LABELS, parts, encoder=encoder))


def test_a_program_can_be_shown_without_its_encoder(with_encoder: Program) -> None:
    program = instantiate(with_encoder, "routing", [label.name for label in LABELS])
    assert serialize(ROUTING, "acme", LABELS, program).routers == with_encoder.routers
    with pytest.raises(NotImplementedError):
        program(query="play a video")


@pytest.mark.parametrize("dimension", [DIMENSION - 1, DIMENSION + 1, 10**9])
def test_an_encoder_of_another_dimension_is_refused(with_encoder: Program, encoder: Path, dimension: int) -> None:
    document = json.loads(with_encoder.encode())
    document["routers"]["routing"]["encoder"]["dimension"] = dimension
    with pytest.raises(InvalidArtifact, match="local router of a program is damaged"):
        deserialize(ROUTING, LABELS, Program.model_validate(document), encoder=encoder)


def test_a_router_from_before_encoders_needs_none(stored: Program) -> None:
    document = json.loads(stored.encode())
    assert document["routers"]["routing"].pop("encoder") is None
    assert cascades_in(deserialize(ROUTING, LABELS, Program.model_validate(document)))


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
        {"encoder": {"sha256": "../../etc/passwd", "dimension": 1}},
        {"encoder": {"sha256": "0" * 64, "dimension": 0}},
    ],
    ids=["text", "uncompressed", "a gigabyte", "threshold", "temperature", "digest", "dimension"],
)
def test_a_file_that_is_no_router_is_refused(stored: Program, damage: dict[str, Any]) -> None:
    document = json.loads(stored.encode())
    document["routers"]["routing"].update(damage)
    with pytest.raises(ValidationError):
        Program.model_validate(document)
