"""Sentence encoders from a folder, whatever it holds."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.modules.encoder import open_encoder
from tests.support.tiny_encoder import DIMENSION, tiny_encoder, write_graph

SYNONYMS = [["film", "movie"], ["song", "tune"]]
ALL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), SYNONYMS)


def test_texts_with_the_same_meaning_have_the_same_vector(folder: Path) -> None:
    encoder = open_encoder(folder)
    film, movie, song = (encoder.encode(text) for text in ("Film", "movie", "song"))
    assert encoder.dimension == DIMENSION
    assert film.tolist() == movie.tolist()
    assert film @ song < 0.9


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.sampled_from(["\ud83d", "film " * 10**5]))
def test_any_text_with_a_token_has_a_vector_of_length_1(folder: Path, text: str) -> None:
    vector = open_encoder(folder).encode(text)
    assert vector.shape == (DIMENSION,)
    assert np.isclose(np.linalg.norm(vector), 1) or not (text.strip() or vector.any())


def test_a_text_is_read_only_to_a_length(folder: Path) -> None:
    encode = open_encoder(folder).encode
    assert encode("film " * 128).tolist() == encode("film " * 128 + "song").tolist()


@pytest.mark.parametrize("inputs", [ALL_INPUTS[:2], ALL_INPUTS])
def test_a_graph_gets_the_inputs_that_it_has(tmp_path: Path, folder: Path, inputs: tuple[str, ...]) -> None:
    encoder = open_encoder(tiny_encoder(tmp_path, SYNONYMS, inputs=inputs))
    assert encoder.encode("film").tolist() == open_encoder(folder).encode("film").tolist()


def test_a_graph_may_be_in_a_folder_of_its_own(tmp_path: Path) -> None:
    tiny_encoder(tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "model.onnx").rename(tmp_path / "onnx" / "model.onnx")
    assert open_encoder(tmp_path).dimension == DIMENSION


def test_the_digest_is_that_of_graph_weights_and_tokenizer(tmp_path: Path) -> None:
    changes: list[Callable[[Path], object]] = [
        lambda folder: None,
        lambda folder: tiny_encoder(folder, seed=2),
        lambda folder: (folder / "model.onnx_data").write_text("weights"),
        lambda folder: (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n"),
    ]
    digests = []
    for number, change in enumerate(changes):
        made = tiny_encoder(tmp_path / str(number))
        change(made)
        digests.append(open_encoder(made).sha256)
    assert len(set(digests)) == len(changes)
    assert open_encoder(tiny_encoder(tmp_path / "again")).sha256 == digests[0]


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_without("tokenizer.json"), "tokenizer.json"),
        (_without("model.onnx"), "model.onnx"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"no graph"), "model.onnx"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "Exception"),
        (
            lambda folder: write_graph(folder / "model.onnx", np.ones((1, 2), np.float32), ["input_ids", "pixels"]),
            "pixels",
        ),
        (
            lambda folder: write_graph(folder / "model.onnx", np.ones((1, 2), np.float32), ["input_ids"], pooled=True),
            "not a vector for each token",
        ),
    ],
)
def test_a_folder_without_an_encoder_is_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object], what: str
) -> None:
    damage(tiny_encoder(tmp_path))
    with pytest.raises(InvalidSettings) as refused:
        open_encoder(tmp_path)
    assert str(refused.value).startswith(f"sentence encoder {tmp_path}: ")
    assert what in refused.value.what
    assert "\n" not in str(refused.value)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        InvalidSettings, match=r"onnxruntime is not installed -> pip install 'autoopt-pipeline\[encoder\]'"
    ):
        open_encoder(tiny_encoder(tmp_path))


def test_an_encoder_is_loaded_once_and_nobody_else_loads_the_runtime(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path)
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(open_encoder, [folder] * 4))
    assert len({id(encoder) for encoder in opened}) == 1
    script = "import sys, autoopt_pipeline.registry.serialization; print('onnxruntime' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "False"


def test_a_forked_process_encodes_too(folder: Path) -> None:
    expected = open_encoder(folder).encode("film").tolist()
    child = os.fork()
    if child == 0:
        os._exit(0 if open_encoder(folder).encode("film").tolist() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
