"""Runs servers on this machine, with their output in log files, and stops all of them at the end."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil

from autoopt_pipeline.errors import StackFailed

LOOPBACK = "127.0.0.1"

# Environment variable that all processes of a stack inherit, so that none is missed at the end.
_MARK = "AUTOOPT_STACK"

_NOT_INHERITED = ("AUTOOPT_", "PHOENIX_", "CONFIG_STORE_URL", "DAGSTER_", "OTEL_")

# Message with which `dagster dev` reports that one of its processes ended, before it exits with status 0.
_CHILD_ENDED = re.compile(r"(?P<name>dagster-[a-z]+) process shut down unexpectedly with return code (?P<status>-?\d+)")

_GRACE_SECONDS = 10
_SWEEPS = 10


class Processes:
    """A group of servers. Leaving the context stops them and everything that they started."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._mark = uuid.uuid4().hex
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._log_begins: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
        """Start a server in its own session, so that Ctrl-C reaches only this process."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._log(name).open("ab") as log:
            self._log_begins[name] = log.tell()
            try:
                self._started[name] = subprocess.Popen(  # noqa: S603 - our own commands
                    command,
                    env={**_neutral_environment(), **env, _MARK: self._mark},
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as e:
                raise StackFailed(f"{name} cannot be started: {e}", f"check the command {command[0]}") from None

    def wait_for_http(self, name: str, url: str, *, seconds: float) -> None:
        """Wait until a server answers. Raises `StackFailed` with the end of its log if it does not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            try:
                if httpx.get(url, timeout=2).is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise StackFailed(f"{name} did not answer at {url} within {seconds:.0f} s", f"see {self._log(name)}")

    def check(self) -> None:
        """Raise `StackFailed` if a server has stopped."""
        for name, process in self._started.items():
            if (status := process.poll()) is not None:
                with self._log(name).open("rb") as log:
                    log.seek(self._log_begins[name])
                    output = log.read().decode(errors="replace").strip()
                raise StackFailed(_how_it_ended(name, status, output), f"see {self._log(name)}")

    def stop(self) -> None:
        """Stop all servers: first by SIGTERM, then by SIGKILL, then all other processes with our mark.

        Ignores signals meanwhile, so that a second Ctrl-C leaves no server behind.
        """
        with _ignoring_signals():
            for process in reversed(self._started.values()):
                _signal_group(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + _GRACE_SECONDS
            for process in self._started.values():
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    _signal_group(process.pid, signal.SIGKILL)
                    process.wait()
            self._started.clear()
            for _ in range(_SWEEPS):
                leftovers = [process for process in psutil.process_iter() if _carries(process, self._mark)]
                if not leftovers:
                    return
                for process in leftovers:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(leftovers, timeout=_GRACE_SECONDS)

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def _how_it_ended(name: str, status: int, output: str) -> str:
    if child := _CHILD_ENDED.search(output):
        ended = _ended_with(int(child["status"]))
        return f"{name} stopped, because {child['name']}, which it had started, {ended}"
    ended = f"{name} {_ended_with(status)}"
    if status < 0 or not output:
        return ended  # a process that a signal ended has no last output
    return f"{ended}: {output.splitlines()[-1][:200]}"


def _ended_with(status: int) -> str:
    """Describe a return code. Negative codes are signals."""
    if status >= 0:
        return f"ended with exit status {status}"
    if status == -signal.SIGKILL:
        return "was killed by SIGKILL, as the kernel does when memory runs out"
    return f"was ended by signal {-status}, {signal.strsignal(-status)}"


def _neutral_environment() -> dict[str, str]:
    """Return the environment without variables that could lead a server to a real store, Phoenix or instance."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}


def free_port() -> int:
    """Return a port that nothing listens on at present."""
    with socket.socket() as s:
        s.bind((LOOPBACK, 0))
        return s.getsockname()[1]


def require_free(port: int, server: str, option: str) -> None:
    """Raise `StackFailed` if something listens on the port."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((LOOPBACK, port))
        except OSError:
            raise StackFailed(
                f"port {port} for {server} is taken",
                f"stop what listens there, or choose another with {option}",
            ) from None


@contextmanager
def _ignoring_signals() -> Generator[None, None, None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals, and has to
        return
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(_MARK) == mark
    except (psutil.Error, OSError):
        return False
