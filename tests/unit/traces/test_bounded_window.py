from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.traces.client import CountRequest, Phoenix, Project
from autoopt_pipeline.traces.reader import bounded_window

START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=30)


class FarTooMany(Phoenix):
    """Counts as many decisions in any window, and records how often it was asked."""

    asked = 0

    def count(self, requests: Sequence[CountRequest]) -> dict[CountRequest, int]:
        self.asked += 1
        return dict.fromkeys(requests, 10**9)


@pytest.mark.parametrize("newest", [True, False])
def test_halving_ends_though_every_count_is_too_large(newest: bool) -> None:
    phoenix = FarTooMany("http://127.0.0.1:1")
    project = Project("id", "acme", START, END, {})
    start, end = bounded_window(phoenix, project, get_module("routing"), START, END, most=100, newest=newest)
    assert end - start <= timedelta(microseconds=1)
    assert (end == END) is newest
    assert phoenix.asked < 60
