"""Stores that tests of several files of this room start from."""

from pathlib import Path

import pytest

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore


@pytest.fixture
def artifacts(tmp_path: Path) -> VersionStore:
    return VersionStore(ObjectStore(str(tmp_path)), "acme", "routing")
