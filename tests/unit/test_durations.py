"""Durations as people write and read them, wherever a configuration is changed or shown."""

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from autoopt_pipeline.durations import as_duration, as_written, durations_written, holds_duration, seconds_in
from autoopt_pipeline.tenants import config


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("45m", 2700), ("2h", 7200), ("30d", 2592000), ("1h30m", 5400), (" 1 D 2 h ", 93600), ("0.5s", 0.5)],
)
def test_units_are_read(text: str, seconds: float) -> None:
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", "7200", "h", "2w", "-2h", "2h x", "1e3s", "٣h", "2 weeks"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert seconds_in(text) is None


@given(st.integers(0, 10**12))
def test_what_is_shown_is_read_as_the_same(seconds: int) -> None:
    assert seconds_in(as_duration(seconds)) == seconds


@given(st.sampled_from(["timeout_seconds", "max_days"]), st.floats() | st.integers() | st.booleans() | st.text())
def test_a_value_is_shown_as_itself_or_as_a_duration_that_is_the_same(field: str, value: object) -> None:
    shown = as_written(field, value)
    if shown is value:
        return
    seconds = seconds_in(shown)
    assert seconds is not None
    assert seconds / (86400 if field == "max_days" else 1) == value


def test_no_other_field_is_touched() -> None:
    document = {"max_lm_calls": 3600, "retry": {"delay_seconds": 60, "max_retries": 2}, "agents": [{"name": "a"}]}
    shown = {"max_lm_calls": 3600, "retry": {"delay_seconds": "1m", "max_retries": 2}, "agents": [{"name": "a"}]}
    assert durations_written(document) == shown
    assert as_written("timeout_seconds", math.inf) == math.inf


def models() -> Iterator[type[BaseModel]]:
    for each in vars(config).values():
        if isinstance(each, type) and issubclass(each, BaseModel):
            yield each


def test_every_field_that_is_shown_as_a_duration_reads_one() -> None:
    fields = [(model, name) for model in models() for name in model.model_fields if holds_duration(name)]
    assert len(fields) >= 7
    for model, name in fields:
        reading = model.__pydantic_decorators__.field_validators.values()
        assert any(name in each.info.fields and each.info.mode == "before" for each in reading), (model, name)
