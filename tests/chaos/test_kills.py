"""kill -9, at any moment."""

import random
import time

import pytest

from autoopt_pipeline.artifacts.store import ModuleArtifacts
from tests.chaos.invariants import check_all, outcomes
from tests.chaos.world import World

KILLED = ["dagster-daemon", "code server", "run worker", "step", "phoenix"]


def test_a_run_and_the_daemon_are_killed_and_the_tenant_learns_all_the_same(deployment: World) -> None:
    """The short version of the rounds below."""
    before = len(outcomes(deployment, "alpha", "modality"))
    assert ModuleArtifacts(deployment.files, "alpha", "modality").active(), "nothing was promoted"
    deployment.feed("alpha")
    run = deployment.wait_for_run()
    assert deployment.kill("run worker")
    assert deployment.kill("dagster-daemon")
    deployment.settle()
    assert len(outcomes(deployment, "alpha", "modality")) == before + 1
    assert any(run.run_id in trouble for trouble in deployment.troubles())
    check_all(deployment)


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
