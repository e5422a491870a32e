"""Servers of the local stack: isolated from the user's settings, and all gone afterwards."""

import signal
import sys
from pathlib import Path

import psutil
import pytest

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.stack import Stack, start_dagster_dev
from autoopt_pipeline.errors import StackFailed


def test_a_server_inherits_nothing_that_leads_to_a_real_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AUTOOPT_CONFIG_STORE_URL", "CONFIG_STORE_URL", "PHOENIX_SQL_DATABASE_URL", "DAGSTER_HOME", "OTEL_X"):
        monkeypatch.setenv(name, "production")
    with Processes(tmp_path) as group:
        group.start("env", ["env"], env={"AUTOOPT_HOME": "here"}, cwd=tmp_path)
        group._started["env"].wait()
    seen = (tmp_path / "env.log").read_text()
    assert "production" not in seen
    assert "AUTOOPT_HOME=here" in seen


def test_what_a_server_started_and_left_behind_is_ended_too(tmp_path: Path) -> None:
    orphaning = "import subprocess, sys; p = subprocess.Popen(['sleep', '60'], start_new_session=True); print(p.pid)"
    with Processes(tmp_path) as group:
        group.start("parent", [sys.executable, "-c", orphaning], env={}, cwd=tmp_path)
        group._started["parent"].wait()
        orphan = int((tmp_path / "parent.log").read_text())
        assert psutil.pid_exists(orphan)
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE


def test_a_server_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    with Processes(tmp_path) as group:
        group.start("short", [sys.executable, "-c", "print('out of luck'); exit(3)"], env={}, cwd=tmp_path)
        with pytest.raises(StackFailed, match=r"short ended with exit status 3: out of luck"):
            group.wait_for_http("short", "http://127.0.0.1:9", seconds=20)


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "server was killed by SIGKILL, as the kernel does when memory runs out -> see"),
     (signal.SIGSEGV, "server was ended by signal 11, Segmentation fault -> see")],
)  # fmt: skip
def test_a_server_that_a_signal_ends_is_told_with_the_signal(tmp_path: Path, number: int, words: str) -> None:
    (tmp_path / "server.log").write_text(
        "dagster-daemon process shut down unexpectedly with return code 7, in an earlier life"
    )
    with Processes(tmp_path) as group:
        group.start("server", ["sleep", "60"], env={}, cwd=tmp_path)
        group._started["server"].send_signal(number)
        group._started["server"].wait()
        with pytest.raises(StackFailed, match=words):
            group.check()


def test_a_daemon_that_dies_under_dagster_is_named(home: Path) -> None:
    with Processes(home / "logs") as group:
        start_dagster_dev(group, Stack(home, "http://127.0.0.1:9", {}), free_port())

        def daemons() -> list[psutil.Process]:
            children = psutil.Process(group._started["dagster"].pid).children(recursive=True)
            return [each for each in children if "dagster._daemon" in each.cmdline()]

        (daemon,) = daemons()
        daemon.kill()
        group._started["dagster"].wait(60)
        with pytest.raises(
            StackFailed, match="dagster stopped, because dagster-daemon, which it had started, was killed"
        ):
            group.check()


def test_a_command_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with Processes(tmp_path) as group, pytest.raises(StackFailed, match="nonexistent"):
        group.start("x", ["/nonexistent/phoenix"], env={}, cwd=tmp_path)
