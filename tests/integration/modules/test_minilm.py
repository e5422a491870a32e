"""The small real encoder that `make encoder` makes of the official weights of all-MiniLM-L6-v2."""

import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tokenizers import Tokenizer

from autoopt_pipeline.devtools.minilm import EPSILON, HEADS, LAYERS, WIDTH, Weights, main
from autoopt_pipeline.modules.encoder import open_encoder

TEXTS = ["hi", "where is my money?", "Überweise 20 € an Zoë, s'il te plaît", "play it again " * 60]

erf = np.vectorize(math.erf, otypes=[np.float64])


def vector_of(text: str, folder: Path, weights: Weights) -> np.ndarray:
    """BERT's vector of a text, written down without ONNX."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.no_padding()
    ids = tokenizer.encode(text).ids

    def normal(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.turned"] + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = normal(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            linear(x, f"{at}.attention.self.{name}").reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        alike = np.exp(query @ key.transpose(0, 2, 1) / math.sqrt(WIDTH / HEADS))
        seen = (alike / alike.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(len(ids), WIDTH)
        x = normal(x + linear(seen, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        inner = linear(x, f"{at}.intermediate.dense")
        inner = inner * (1 + erf(inner / math.sqrt(2))) / 2
        x = normal(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_the_graph_computes_what_the_weights_mean(minilm: Path) -> None:
    graph = onnx.load(minilm / "model.onnx").graph
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    encoder = open_encoder(minilm)
    for text in TEXTS:
        np.testing.assert_allclose(encoder.encode(text), vector_of(text, minilm, weights), atol=2e-6)


def test_it_knows_what_is_alike(minilm: Path) -> None:
    encode = open_encoder(minilm).encode
    asked, alike, another = (
        encode(text) for text in ("how much is on my account", "what is my bank balance", "will it rain tomorrow")
    )
    assert asked @ alike > 0.5 > 0.3 > asked @ another


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.safetensors", "others")
        archive.writestr("tokenizer.json", "{}")
    monkeypatch.setattr(sys, "argv", ["minilm", str(file), str(tmp_path / "encoder")])
    with pytest.raises(SystemExit, match=r"model\.zip has other weights.*'make encoder'"):
        main()
    assert not (tmp_path / "encoder").exists()
