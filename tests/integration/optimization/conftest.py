"""Stores that tests of several files of this room start from."""

from pathlib import Path

import pytest

from autoopt_pipeline.optimization.warm_start import Pool
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.shared_instructions import SharedStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.stores.sqlite import SqliteConfigStore


@pytest.fixture
def artifacts(tmp_path: Path) -> VersionStore:
    return VersionStore(ObjectStore(str(tmp_path)), "acme", "routing")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def configs(tmp_path: Path) -> SqliteConfigStore:
    return SqliteConfigStore(str(tmp_path / "config.db"))


@pytest.fixture
def pool(root: Path, configs: SqliteConfigStore) -> Pool:
    return Pool(SharedStore(ObjectStore(str(root)), "routing"), configs)
