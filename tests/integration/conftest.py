"""Fixtures of several rooms. A file that needs something else under the same name defines its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from tests.support.llm_server import LLMServer, llm_server


@pytest.fixture
def artifacts(tmp_path: Path) -> VersionStore:
    return VersionStore(ObjectStore(str(tmp_path)), "acme", "routing")


@pytest.fixture
def server() -> Iterator[LLMServer]:
    """An endpoint of a language model that records what it is sent."""
    with llm_server() as running:
        yield running
