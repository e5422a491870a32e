"""Dagster's own parts: two daemons, a command that was killed, a database that restarts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoopt_pipeline.devtools.stack import start_daemon
from tests.chaos.invariants import check_all, outcomes
from tests.chaos.world import World, world

pytestmark = pytest.mark.chaos

AUTOOPT = str(Path(sys.executable).parent / "autoopt")


def test_two_daemons_by_mistake_do_nothing_twice(deployment: World) -> None:
    start_daemon(deployment.processes, deployment.stack, "second-daemon")
    try:
        for _ in range(2):
            for name in ("alpha", "beta"):
                deployment.feed(name)
            deployment.settle()
            check_all(deployment)
    finally:
        deployment.forget("second-daemon")


def test_a_command_that_was_killed_does_not_hold_up_its_tenant(deployment: World) -> None:
    env = {**os.environ, **deployment.stack.env}
    command = subprocess.Popen(
        [AUTOOPT, "trigger", "--tenant-id", "alpha", "--module", "modality", "--force"], env=env, cwd=deployment.home
    )
    run = deployment.wait_for_run()
    command.kill()
    command.wait()
    deployment.feed("alpha")
    before = len(outcomes(deployment, "alpha", "modality"))
    deployment.settle()
    assert len(outcomes(deployment, "alpha", "modality")) == before + 1
    (trouble,) = [trouble for trouble in deployment.troubles() if run.run_id in trouble]
    assert f"its process {command.pid}" in trouble
    assert "is gone" in trouble
    check_all(deployment)


def test_a_daemon_that_stands_still_goes_on_where_it_stood(deployment: World) -> None:
    """As under a debugger, or with a machine that sleeps."""
    deployment.feed("alpha")
    (daemon,) = deployment.pids("dagster-daemon")
    os.kill(daemon, signal.SIGSTOP)
    time.sleep(10)
    os.kill(daemon, signal.SIGCONT)
    deployment.settle()
    check_all(deployment)


@pytest.fixture(scope="module")
def on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("on-postgres"), postgres=True) as started:
        started.add_tenant("alpha")
        yield started


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_database_restarts_while_a_run_is_at_work(on_postgres: World, how: signal.Signals) -> None:
    if outcomes(on_postgres, "alpha", "modality"):
        on_postgres.feed("alpha")
    before = len(outcomes(on_postgres, "alpha", "modality"))
    on_postgres.wait_for_run()
    on_postgres.stop("postgres", how)
    time.sleep(3)
    on_postgres.start("postgres")
    on_postgres.settle()
    assert len(outcomes(on_postgres, "alpha", "modality")) == before + 1
    check_all(on_postgres)
