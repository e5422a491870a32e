"""A linear classifier that chooses one label without a language model. Needs only NumPy, unless it has an encoder.

A text is the set of its words, pairs of words, and runs of 3 to 5 characters within a word. CRC-32 maps each to one of
`BUCKETS` columns (feature hashing; Weinberger et al., ICML 2009), so that no vocabulary, and no text, is stored. A
column counts by its inverse document frequency, and the vector has length 1. Beside it, a sentence encoder's vector may
count as much (`modules/encoder.py`). `optimization/router_training.py` learns the weights.
"""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autoopt_pipeline.modules.encoder import Encoder
from autoopt_pipeline.modules.similarity import normalize_query, split_words
from autoopt_pipeline.modules.spec import query_of

# Columns for words and pairs of words, and as many for runs of characters. Four times as many gain half a point.
_HASHED = 2**13
BUCKETS = 2 * _HASHED

_RUNS = (3, 4, 5)

# Characters of one input that are read. More of them hardly change the choice, and a choice should take milliseconds.
_MOST_CHARACTERS = 2000


@dataclass(frozen=True)
class LocalRouter:
    """What was learnt: weights of -127 to 127 for each column and class, and how to read them.

    The score of a class is its weights times the text's vector, times its `scale`, plus its `bias`. `rarity` holds the
    columns' inverse document frequencies, of which only the ratios count. The numbers of a sentence vector are columns
    after those. `temperature` makes probabilities of scores, so that of the answers with a confidence of 0.8 about 80 %
    are right.
    """

    classes: tuple[str, ...]
    weights: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]
    rarity: NDArray[np.uint8]
    temperature: float
    encoder: Encoder | None = None

    def choose(self, inputs: Mapping[str, str], allowed: Collection[str]) -> tuple[str | None, float]:
        """Return the likeliest allowed class and its probability; None and 0 if no class is allowed."""
        columns = columns_of(inputs)
        sums = vector(columns, self.rarity) @ self.weights[columns].astype(np.float32)
        if self.encoder:
            sums += self.encoder.encode(query_of(inputs)) @ self.weights[BUCKETS:].astype(np.float32)
        scores = sums * self.scale + self.bias
        shares = probabilities(scores[np.newaxis], self.temperature)[0]
        for place in np.argsort(-shares, kind="stable"):
            if self.classes[place] in allowed:
                return self.classes[place], float(shares[place])
        return None, 0.0


def columns_of(inputs: Mapping[str, str]) -> NDArray[np.int64]:
    """Return the columns of a request's inputs, each once, in order.

    The `query` shares a column with another input only by chance.
    """
    columns: set[int] = set()
    for name, text in inputs.items():
        salt = "" if name == "query" else f"{name}\0"
        words = split_words(normalize_query(text[:_MOST_CHARACTERS])) if text else []
        pairs = (f"{first} {second}" for first, second in pairwise(words))
        columns.update(_hashed(salt + gram) for gram in (*words, *pairs))
        columns.update(_HASHED + _hashed(salt + run) for word in set(words) for run in _runs(f" {word} "))
    return np.array(sorted(columns), dtype=np.int64)


def vector(columns: NDArray[np.int64], rarity: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the values of a text's columns: their rarities, in a vector of length 1."""
    values = rarity[columns].astype(np.float32)
    length = np.sqrt(values @ values)
    return values / length if length else values


def probabilities(scores: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """Return the softmax of scores with a temperature, for each row."""
    scaled = scores.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _runs(padded: str) -> set[str]:
    if len(padded) <= _RUNS[0]:
        return {padded}
    return {padded[start : start + length] for length in _RUNS for start in range(len(padded) - length + 1)}


def _hashed(gram: str) -> int:
    # Half of a character pair, which JSON may hold, is a text like any other here.
    return zlib.crc32(gram.encode(errors="surrogatepass")) % _HASHED
