"""How many examples a search needs."""

import pytest

from autoopt_pipeline.evaluation.gate import MIN_HOLDOUT
from autoopt_pipeline.evaluation.split import HoldoutExample, Split
from autoopt_pipeline.optimization.preparation import MIN_TRAIN, missing_data
from autoopt_pipeline.optimization.search import MIN_DEV
from autoopt_pipeline.registry.records import Verdict
from tests.support.sample_decisions import example

ONE = example("where is it")
HELD_OUT = HoldoutExample(ONE, ("where is it",))


def split(train: int, dev: int, holdout: int, drawable: int) -> Split:
    return Split((ONE,) * train, (ONE,) * dev, (HELD_OUT,) * holdout, (), 0, 0, 0, 0, (HELD_OUT,) * drawable)


@pytest.mark.parametrize(
    ("train", "dev", "holdout", "drawable", "missing"),
    [
        (MIN_TRAIN, MIN_DEV, MIN_HOLDOUT, 0, None),
        (MIN_TRAIN, MIN_DEV, 0, MIN_HOLDOUT, None),
        (MIN_TRAIN - 1, MIN_DEV, MIN_HOLDOUT, 0, "19 of 20 training and 10 of 10 dev examples"),
        (MIN_TRAIN, MIN_DEV - 1, MIN_HOLDOUT, 0, "20 of 20 training and 9 of 10 dev examples"),
        (MIN_TRAIN, MIN_DEV, 60, MIN_HOLDOUT - 1, "99 of 100 holdout examples"),
    ],
)
def test_the_reason_counts_what_is_missing(
    train: int, dev: int, holdout: int, drawable: int, missing: str | None
) -> None:
    expected = missing and (Verdict.NOT_ENOUGH_DATA, missing)
    assert missing_data(split(train, dev, holdout, drawable)) == expected
