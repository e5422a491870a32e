"""Durations where the command changes and shows a configuration."""

import json
from pathlib import Path

import pytest

from autoopt_pipeline.tenants.config import parse_config
from autoopt_pipeline.tenants.store import open_config_store
from tests.support.command_line import autoopt


def test_a_configuration_is_changed_and_shown_in_durations_and_stored_in_seconds(home: Path) -> None:
    autoopt("tenants", "add", "acme")
    autoopt("config", "set", "acme", "optimization_interval_seconds=2h", "lookback_seconds=60d", "rollout.max_days=36h")
    autoopt("config", "set", "acme", "retry.delay_seconds=90")
    stored = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}").current()["acme"].document
    assert stored == {
        "tenant_id": "acme",
        "agents": [],
        "optimization_interval_seconds": 7200,
        "lookback_seconds": 5184000,
        "rollout": {"max_days": 1.5},
        "retry": {"delay_seconds": 90},
    }
    shown = json.loads(autoopt("config", "get", "acme"))
    assert (shown["optimization_interval_seconds"], shown["lookback_seconds"]) == ("2h", "60d")
    assert (shown["retry"]["delay_seconds"], shown["rollout"]["max_days"]) == ("1m30s", "1d12h")
    assert parse_config(shown, where="what is shown").retry.delay_seconds == 90
    assert "retry.delay_seconds: 5s -> 1m30s" in autoopt("config", "diff", "acme")
    assert " 2h " in autoopt("tenants", "list")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("lookback_seconds=2w", "lookback_seconds: has to be a duration such as 90s, 45m, 2h or 30d"),
        ("max_run_seconds=30s", "max_run_seconds: has to be 1m or more (got '30s')"),
        ("retry.delay_seconds=2h", "retry.delay_seconds: has to be 1h or less (got '2h')"),
    ],
)
def test_a_duration_that_cannot_be_is_told_in_durations(home: Path, change: str, words: str) -> None:
    autoopt("tenants", "add", "acme")
    assert words in autoopt("config", "set", "acme", change, status=2)
