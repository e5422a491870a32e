"""Measures in a process of its own, and of a server, so that nothing else counts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil


def in_own_process(script: str, *arguments: str, env: Mapping[str, str], folder: Path | None = None) -> Any:
    """Run a benchmark once more with these arguments and additional environment, and return the JSON that it prints."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, script, *arguments],
        env={**os.environ, **env},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def phoenix_process(folder: Path) -> psutil.Process:
    """The server itself, and not a wrapper around it: of those in its folder, the largest."""
    ours = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder)]
    return max(ours, key=lambda process: process.memory_info().rss)


def peak_mb() -> float:
    """The most memory that this process has held. `ru_maxrss` would begin with that of the process that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


@contextmanager
def cpu_of(process: psutil.Process) -> Generator[list[float]]:
    """The CPU seconds that a process used meanwhile, once the block is left."""
    used, before = [0.0], sum(process.cpu_times()[:2])
    yield used
    used[0] = sum(process.cpu_times()[:2]) - before


@contextmanager
def counted_requests() -> Generator[dict[str, int]]:
    """What goes over HTTP, bodies only, unpacked."""
    counts = {"requests": 0, "sent": 0, "received": 0}
    send: Callable[..., httpx.Response] = httpx.Client.send

    def counting(self: httpx.Client, request: httpx.Request, **kwargs: Any) -> httpx.Response:
        response = send(self, request, **kwargs)
        counts["requests"] += 1
        counts["sent"] += len(request.content)
        counts["received"] += len(response.content)
        return response

    httpx.Client.send = counting
    try:
        yield counts
    finally:
        httpx.Client.send = send
