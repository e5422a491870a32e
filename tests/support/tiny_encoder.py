"""A sentence encoder that is made in no time: each word has a vector of its own, and synonyms have the same one."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

DIMENSION = 16


def tiny_encoder(
    folder: Path, synonyms: Sequence[Sequence[str]] = (), *, inputs: Sequence[str] = ("input_ids",), seed: int = 1
) -> Path:
    """Write an encoder that knows these groups of synonyms, and return its folder. All other words are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors = np.random.default_rng(seed).normal(size=(1 + len(synonyms), DIMENSION)).astype(np.float32)
    known = [(word, number) for number, group in enumerate(synonyms, 1) for word in group]
    write_graph(folder / "model.onnx", vectors[[0, *(number for _, number in known)]], inputs)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordLevel",
            "vocab": {"[UNK]": 0, **{word: place for place, (word, _) in enumerate(known, 1)}},
            "unk_token": "[UNK]",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def write_graph(file: Path, vectors: np.ndarray, inputs: Sequence[str], *, pooled: bool = False) -> None:
    """Write a graph with these inputs that looks up the vector of each token, or of the first one if `pooled`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    looked_up = helper.make_node("Gather", ["vectors", "input_ids"], ["of tokens"])
    first = helper.make_node("ReduceMax", ["of tokens", "second axis"], ["first"], keepdims=0)
    made = helper.make_graph(
        [looked_up, first] if pooled else [looked_up],
        "tiny",
        [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["batch", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info("first" if pooled else "of tokens", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(vectors, "vectors"), numpy_helper.from_array(np.array([1]), "second axis")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
