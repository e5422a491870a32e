"""kill -9, at any moment."""

import random
import time

import pytest

from autoopt_pipeline.registry.version_store import VersionStore
from tests.chaos.invariants import check_all, outcomes
from tests.chaos.world import World

KILLED = ["dagster-daemon", "code server", "run worker", "step", "phoenix"]


def test_the_first_run_and_the_daemon_are_killed_and_the_tenant_is_promoted_all_the_same(fresh: World) -> None:
    """The short version of the rounds below."""
    if "alpha" in fresh.tenants:
        fresh.settle()
        fresh.feed("alpha")
    else:
        fresh.add_tenant("alpha")
    before = len(outcomes(fresh, "alpha", "modality"))
    run = fresh.wait_for_run()
    assert fresh.kill("run worker")
    assert fresh.kill("dagster-daemon")
    fresh.settle()
    assert any(run.run_id in trouble for trouble in fresh.troubles())
    assert VersionStore(fresh.files, "alpha", "modality").active(), "nothing was promoted"
    assert len(outcomes(fresh, "alpha", "modality")) == before + 1
    check_all(fresh)


@pytest.mark.chaos
def test_whatever_is_killed_whenever_all_invariants_hold(deployment: World, dice: random.Random) -> None:
    for name in dice.sample(list(deployment.tenants), k=dice.randint(1, 2)):
        deployment.feed(name)
    for _ in range(dice.randint(1, 3)):
        time.sleep(dice.uniform(0, 12))
        deployment.kill(dice.choice(KILLED))
        deployment.supervise()
    deployment.settle()
    check_all(deployment)
