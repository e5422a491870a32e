"""Trains the local router of a module that chooses one label."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix, hstack
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from autoopt_pipeline.modules.encoder import Encoder
from autoopt_pipeline.modules.local_router import BUCKETS, LocalRouter, columns_of, probabilities, vector
from autoopt_pipeline.modules.spec import WORTH, Example, Label, ModuleSpec, query_of

# Fewest training examples.
MIN_FOR_ROUTER = 50

# Share of the examples on which a careful router may be wrong. It is half of the default of `objective.max_loss`.
CAREFUL_LOSS = 0.005

# Parts of the training examples, each of which is scored by a router of the others, to learn the temperature.
_FOLDS = 5

_LARGEST_WEIGHT = 127
_LARGEST_RARITY = 255


def can_be_routed(spec: ModuleSpec, labels: Sequence[Label], train: Sequence[Example]) -> bool:
    """Whether a module chooses one of its labels, and at least two are shown by enough examples."""
    if len(spec.outputs) > 1 or spec.parts or len(train) < MIN_FOR_ROUTER:
        return False
    names = {label.name for label in labels}
    answers = [example.right.get(spec.output_field) for example in train]
    if not all(isinstance(answer, str) and answer in names for answer in answers):
        return False
    return sum(count >= _FOLDS for count in Counter(answers).values()) > 1


def train_router(
    spec: ModuleSpec, train: Sequence[Example], *, seed: int, encoder: Encoder | None = None
) -> LocalRouter:
    """Learn a router by linear support vectors, one class against the others.

    On CLINC150 as ten agents they were right on 1 to 4 points more than logistic regression. `bench/local_router.py`
    measures how often they are right.
    """
    columns = [columns_of(example.inputs) for example in train]
    answers = np.array([example.right[spec.output_field] for example in train])
    worth = np.array([WORTH[example.provenance] for example in train])
    rarity = _rarity(columns)
    texts = _matrix(columns, rarity)
    if encoder:
        vectors = np.array([encoder.encode(query_of(example.inputs)) for example in train], dtype=np.float64)
        texts = hstack([texts, csr_matrix(vectors)], format="csr")
    classes, weights, bias = _fit(texts, answers, worth, seed)
    scale = np.maximum(np.abs(weights).max(axis=1), 1e-9) / _LARGEST_WEIGHT
    return LocalRouter(
        classes=tuple(classes.tolist()),
        weights=np.ascontiguousarray(np.rint(weights / scale[:, np.newaxis]).astype(np.int8).T),
        scale=scale.astype(np.float32),
        bias=bias.astype(np.float32),
        rarity=rarity,
        temperature=_temperature(texts, answers, worth, seed),
        encoder=encoder,
    )


def best_threshold(shares: Sequence[float], local: Sequence[float], model: Sequence[float]) -> float | None:
    """Return the probability from which the router should answer, or None if the model is always better.

    `shares` are the router's probabilities for some examples, `local` and `model` the scores of both answers. Of equal
    thresholds the lowest is chosen, because it asks the model least.
    """
    surest_first = sorted(zip(shares, local, model, strict=True), key=lambda example: -example[0])
    gain, best, threshold = 0.0, 0.0, None
    for place, (share, ours, theirs) in enumerate(surest_first, 1):
        gain += ours - theirs
        is_last_of_equals = place == len(surest_first) or surest_first[place][0] < share
        if is_last_of_equals and gain >= best:
            best, threshold = gain, share
    return threshold


def careful_threshold(shares: Sequence[float], local: Sequence[float], model: Sequence[float]) -> float | None:
    """Return the lowest probability from which the router is worse than the model on no example; None if none is.

    By its own probabilities it may be wrong there on `CAREFUL_LOSS` of all examples, because a few examples show no
    rare errors.
    """
    worse = max(
        (share for share, ours, theirs in zip(shares, local, model, strict=True) if ours < theirs), default=-1.0
    )
    threshold, expected = None, 0.0
    for share in sorted(shares, reverse=True):
        expected += (1 - share) / len(shares)
        if share <= worse or expected > CAREFUL_LOSS:
            break
        threshold = share
    return threshold


def _rarity(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.uint8]:
    """Return the inverse document frequency of each column, smoothed as if one more text had them all."""
    counts = np.bincount(np.concatenate(columns), minlength=BUCKETS)
    inverse = np.log((1 + len(columns)) / (1 + counts)) + 1
    return np.rint(inverse / inverse.max() * _LARGEST_RARITY).astype(np.uint8)


def _matrix(columns: Sequence[NDArray[np.int64]], rarity: NDArray[np.uint8]) -> csr_matrix:
    ends = np.cumsum([0, *map(len, columns)])
    values = np.concatenate([vector(own, rarity) for own in columns])
    return csr_matrix((values, np.concatenate(columns), ends), shape=(len(columns), BUCKETS), dtype=np.float64)


def _fit(
    texts: csr_matrix, answers: NDArray[np.str_], worth: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.str_], NDArray[np.float64], NDArray[np.float64]]:
    """Return the classes, and their weights and biases. Of two classes, scikit-learn fits only the second."""
    fitted = LinearSVC(C=1.0, random_state=seed).fit(texts, answers, sample_weight=worth)
    if len(fitted.classes_) == 2:
        sides = np.array([[-0.5], [0.5]])
        return fitted.classes_, sides @ fitted.coef_, (sides @ fitted.intercept_[:, np.newaxis])[:, 0]
    return fitted.classes_, fitted.coef_, fitted.intercept_


def _temperature(texts: csr_matrix, answers: NDArray[np.str_], worth: NDArray[np.float64], seed: int) -> float:
    """Return the temperature under which the right answers are likeliest, by routers that did not learn from them.

    Temperature scaling: Guo et al., ICML 2017. A class with an example in each fold takes part.
    """
    common = np.isin(answers, [name for name, count in Counter(answers.tolist()).items() if count >= _FOLDS])
    texts, answers, worth = texts[common], answers[common], worth[common]
    classes = np.unique(answers)
    scores = np.zeros((len(answers), len(classes)))
    for learnt, left in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(texts, answers):
        _, weights, bias = _fit(texts[learnt], answers[learnt], worth[learnt], seed)
        scores[left] = texts[left] @ weights.T + bias
    right = np.searchsorted(classes, answers)

    def loss(log_temperature: float) -> float:
        shares = probabilities(scores, float(np.exp(log_temperature)))
        return float(-(worth * np.log(shares[np.arange(len(right)), right] + 1e-12)).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 3), method="bounded").x))
