"""Sides of the split, canaries and jitter rest on these numbers: they must be the same in every release."""

import pytest

from autoopt_pipeline.hashing import unit_interval


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("acme", 0.5084717081697409),
        ("", 0.8894159948913374),
        ("find my video", 0.7305029965121703),
        ("modality\0r-1", 0.3013206875851637),
    ],
)
def test_a_text_has_the_same_place_for_ever(text: str, place: float) -> None:
    assert unit_interval(text) == place
