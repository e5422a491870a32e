"""Sentence encoders, which make a vector of a text. Any ONNX graph with its tokenizer, in a folder of the deployment.

A folder holds `tokenizer.json`, and `model.onnx` or `onnx/model.onnx`, as sentence-transformers exports them. Nothing
is downloaded. The extra `encoder` installs ONNX Runtime and tokenizers, which are imported only to load an encoder.
"""

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoopt_pipeline.errors import InvalidSettings

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

# Tokens of a text that are read. Sentence encoders are trained on short texts, and a decision should take milliseconds.
_TOKENS = 128

# Characters of a text that are split into tokens.
_CHARACTERS = 2000

_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_GRAPHS = ("model.onnx", "onnx/model.onnx")
_REMEDY = "name a folder with model.onnx and tokenizer.json of a sentence encoder (docs/modules.md)"


@dataclass(frozen=True)
class Encoder:
    """What identifies an encoder, and how it makes a vector of length 1 of a text (of length 0 if it has no tokens).

    `sha256` is the digest of its files. `dimension` is how many numbers a vector has. Threads may encode at once.
    """

    sha256: str
    dimension: int
    encode: Callable[[str], NDArray[np.float32]]


def open_encoder(folder: Path) -> Encoder:
    """Return the encoder in a folder. It is loaded once per process; all-MiniLM-L6-v2 takes 160 MB.

    Raises `InvalidSettings` if the folder holds no encoder, or the extra `encoder` is not installed.
    """
    with _loading:
        return _load(folder.absolute())


# Threads that need the same encoder load it once. A child process must not inherit the lock of a thread it has not.
_loading = threading.Lock()
os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


@lru_cache
def _load(folder: Path) -> Encoder:
    try:
        import onnxruntime
        from tokenizers import Tokenizer
    except ImportError as e:
        raise InvalidSettings(
            f"sentence encoder {folder}: {e.name} is not installed", "pip install 'autoopt-pipeline[encoder]'"
        ) from None
    graph = next((folder / name for name in _GRAPHS if (folder / name).is_file()), folder / _GRAPHS[0])
    options = onnxruntime.SessionOptions()
    # Applications answer many requests at once, so more threads for one would only wait for each other.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    try:
        digest = _digest(graph, folder / "tokenizer.json")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(_TOKENS)
        tokenizer.no_padding()
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        wanted = _inputs_of(session)
        dimension = _run(session, wanted, tokenizer, "a text").shape[-1]
    except Exception as e:  # noqa: BLE001 - both packages raise plain exceptions
        raise InvalidSettings(f"sentence encoder {folder}: {type(e).__name__}: {e}", _REMEDY) from None
    return Encoder(digest, dimension, lambda text: _unit(_run(session, wanted, tokenizer, text)))


def _inputs_of(session: "InferenceSession") -> frozenset[str]:
    wanted = frozenset(each.name for each in session.get_inputs())
    if not wanted <= _INPUTS:
        raise ValueError(f"the graph needs {', '.join(sorted(wanted - _INPUTS))}")
    return wanted


def _run(session: "InferenceSession", wanted: frozenset[str], tokenizer: "Tokenizer", text: str) -> NDArray[np.float32]:
    """Return the sum of the tokens' vectors, whose direction is their mean's. One text has no padding to leave out."""
    # Half of a character pair, which JSON may hold, is no text to a tokenizer.
    readable = text[:_CHARACTERS].encode(errors="replace").decode()
    tokens = tokenizer.encode(readable)
    given = {"input_ids": tokens.ids, "attention_mask": tokens.attention_mask, "token_type_ids": tokens.type_ids}
    answer = session.run(None, {name: np.array([given[name]], np.int64) for name in wanted})[0]
    if not isinstance(answer, np.ndarray) or answer.ndim != 3:
        raise ValueError("the graph's first output is not a vector for each token")
    return answer[0].astype(np.float32).sum(axis=0)


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.sqrt(vector @ vector)
    return vector / length if 0 < length < np.inf else np.zeros_like(vector)


def _digest(graph: Path, tokenizer: Path) -> str:
    """Return the digest of all files of an encoder. Large graphs keep their weights in files beside them."""
    together = hashlib.sha256()
    for file in [*sorted(graph.parent.glob(f"{graph.name}*")), tokenizer]:
        with file.open("rb") as opened:
            together.update(hashlib.file_digest(opened, "sha256").digest())
    return together.hexdigest()
