"""A Postgres server of the tests' own."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoopt_pipeline.devtools.processes import LOOPBACK, Processes, free_port


@dataclass(frozen=True)
class Postgres:
    """Where a database is kept, and its port. As root, it runs as its own user, for it refuses root."""

    server: Path
    folder: Path
    port: int
    encrypted: bool = False

    @property
    def url(self) -> str:
        options = "?sslmode=require" if self.encrypted else ""
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/postgres{options}"

    @property
    def dagster_storage(self) -> dict[str, Any]:
        """The `storage` of a `dagster.yaml`, as the chart and the install page have it."""
        storage = {
            "module": "autoopt_pipeline.orchestration.postgres_storage",
            "class": "ReusingPostgresStorage",
            "config": {"postgres_url": self.url},
        }
        return {"custom": storage}

    def create(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        options = ["-D", self.folder, "-A", "trust", "-U", "postgres", "--no-sync"]
        command = [*self._as_user(), self.server.with_name("initdb"), *options]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)
        if self.encrypted:
            self._create_certificate()

    def _create_certificate(self) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("openssl is not installed")
        options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 2"
        command = [*self._as_user(), openssl, *options.split(), "-keyout", "server.key", "-out", "server.crt"]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)
        self.folder.joinpath("server.key").chmod(0o600)

    def start(self, processes: Processes) -> None:
        options = ["-D", str(self.folder), "-h", LOOPBACK, "-p", str(self.port), "-k", str(self.folder)]
        options += ["-c", "ssl=on"] if self.encrypted else []
        processes.start("postgres", [*self._as_user(), str(self.server), *options], env={}, cwd=self.folder)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            processes.check()
            with suppress(OSError), socket.create_connection((LOOPBACK, self.port), timeout=1):
                return
            time.sleep(0.2)
        raise AssertionError("Postgres did not start within 30 s")

    @staticmethod
    def _as_user() -> list[str]:
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


@contextmanager
def new_postgres(*, encrypted: bool = False) -> Generator[Postgres]:
    """An empty database, not yet started; `encrypted` connections use TLS. Skips where no server is installed."""
    # Debian leaves the server out of PATH.
    found = [*map(Path, filter(None, [shutil.which("postgres")])), *Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if not found:
        pytest.skip("postgres is not installed (apt-get install postgresql)")
    # Not below pytest's own folder, which Postgres's user may not enter.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        database = Postgres(found[0].resolve(), Path(folder), free_port(), encrypted)
        database.create()
        yield database
