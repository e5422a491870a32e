"""Does the language model behind a program answer otherwise than before? Pure.

A program is asked again what it was asked at an earlier time, and once more where the answer is another one. The same
model may give different answers to the same question. But then any of an example's three answers may be the odd one, so
the third is as often like the second as like the first. Only another model repeats its new answers.

The test is exact: Suissa & Shuster's for matched pairs (Biometrics 1991), an unconditional one after Barnard
(Biometrika 1947). How often the model varies is not known, so the p value is the largest that any such rate gives. It
is stronger than McNemar's, which knows only the changed answers: the others show how little the model varies.
"""

import math
from functools import cache

from autoopt_pipeline.registry.replays import ModelReplay

# Most chance of taking a model that answers as before for another one, when a fall asks for its cause.
ALPHA = 0.1

# Chance of taking another model, which has caused a fall, for one that answers as before.
_MISSED = 0.1

# Rates of variation that are tried.
_RATES = tuple((step + 0.5) / 200 for step in range(100))


def has_changed(replay: ModelReplay) -> bool:
    """Whether it is proven that the model answers differently."""
    return replay.p <= ALPHA


def cannot_explain(replay: ModelReplay, loss: float) -> bool:
    """Whether so few answers changed that the model has not caused a loss of the mean score (0 to 1).

    Each point that is lost takes at least one changed answer in a hundred.
    """
    asked, share = replay.asked, min(max(loss, 0.0), 1.0)
    at_most = sum(
        math.comb(asked, count) * share**count * (1 - share) ** (asked - count) for count in range(replay.differing + 1)
    )
    return at_most <= _MISSED


@cache
def p_value(asked: int, repeated: int, returned: int) -> float:
    """One-sided p value of `repeated` new answers against `returned` earlier ones, of all examples `asked`."""
    if repeated <= returned:
        return 1.0
    observed = _statistic(repeated, returned)
    as_extreme = [
        (there + back, math.comb(asked, there + back) * math.comb(there + back, there))
        for there in range(1, asked + 1)
        for back in range(min(there, asked - there + 1))
        if _statistic(there, back) >= observed - 1e-12
    ]
    return max(
        sum(ways * rate**differing * (1 - 2 * rate) ** (asked - differing) for differing, ways in as_extreme)
        for rate in _RATES
    )


def _statistic(repeated: int, returned: int) -> float:
    return (repeated - returned) / math.sqrt(repeated + returned)
