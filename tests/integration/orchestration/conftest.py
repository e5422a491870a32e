"""What tests of several files of this room start from."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from autoopt_pipeline.devtools.sample_tenants import sample_config, send_sample_traffic
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix
from tests.support.materializing import ACME


@pytest.fixture(scope="module")
def acme(phoenix: Phoenix) -> datetime:
    """Sample traffic of acme, and when it ended."""
    end = datetime.now(UTC)
    send_sample_traffic(phoenix, ACME, ACME.traces, start=end - timedelta(hours=3), end=end, seed=1)
    return end


@pytest.fixture
def configured(home: Path, phoenix: Phoenix, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOOPT_HOME", str(home / ".autoopt"))  # the instance fixture has a home of its own
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    write_config(open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"), sample_config(ACME))
    return home
