"""The deployment that faults are done to, and how long and with which dice."""

import os
import random
from collections.abc import Iterator

import pytest

from tests.chaos.world import World, world

SEED = int(os.environ.get("CHAOS_SEED") or random.randrange(10_000))
ROUNDS = int(os.environ.get("CHAOS_ROUNDS") or 4)


def pytest_report_header() -> str:
    return f"chaos: CHAOS_SEED={SEED} CHAOS_ROUNDS={ROUNDS}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dice" in metafunc.fixturenames:
        dice = [random.Random(f"{SEED}/{number}") for number in range(ROUNDS)]
        metafunc.parametrize("dice", dice, ids=[f"round {number}" for number in range(ROUNDS)])


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With nobody in it."""
    with world(tmp_path_factory.mktemp("world")) as started:
        yield started


@pytest.fixture
def deployment(fresh: World) -> World:
    """With two tenants that have an outcome each, and nothing to do."""
    for name in ("alpha", "beta"):
        if name not in fresh.tenants:
            fresh.add_tenant(name)
    fresh.settle()
    return fresh
