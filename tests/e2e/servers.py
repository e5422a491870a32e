"""What the chart expects to find outside the cluster, on this machine, at an address that pods reach.

Postgres, Redis, Phoenix, a bucket, and a language model that can be made to wait.
"""

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.stack import start_phoenix, wait_for_phoenix
from tests.support.llm_server import LLMServer, llm_server

BUCKET = "programs"
REGION = "us-east-1"
DATABASE_USER = "dagster"


def _secret() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Secrets:
    """What may stand nowhere but in Secrets."""

    postgres: str = field(default_factory=_secret)
    redis: str = field(default_factory=_secret)
    bucket: str = field(default_factory=_secret)
    llm: str = field(default_factory=_secret)
    dashboard: str = field(default_factory=_secret)

    def all(self) -> tuple[str, ...]:
        return self.postgres, self.redis, self.bucket, self.llm, self.dashboard


@dataclass(frozen=True)
class Servers:
    host: str
    secrets: Secrets
    processes: Processes
    postgres_port: int
    redis_port: int
    phoenix: str
    s3: str
    llm: LLMServer

    @contextmanager
    def phoenix_paused(self) -> Generator[None]:
        """Phoenix takes connections, and answers nothing until the end of the block."""
        [phoenix] = [each for each in psutil.Process().children() if each.cmdline()[-1] == "serve"]
        phoenix.suspend()
        try:
            yield
        finally:
            phoenix.resume()

    @property
    def store_url(self) -> str:
        return f"redis://:{self.secrets.redis}@{self.host}:{self.redis_port}/0"

    @property
    def bucket_env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.s3,
            "AWS_ACCESS_KEY_ID": "e2e",
            "AWS_SECRET_ACCESS_KEY": self.secrets.bucket,
            "AWS_DEFAULT_REGION": REGION,
        }


def address_towards(node: str) -> str:
    """This machine's address on the way to a node."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((node, 9))  # sends nothing
        return probe.getsockname()[0]


@contextmanager
def serve(host: str) -> Generator[Servers]:
    """All of them, until the end of the block."""
    made = Secrets()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="autoopt-e2e-")))
        processes = stack.enter_context(Processes(folder / "logs"))
        postgres = _postgres(processes, folder / "postgres", host, made.postgres)
        redis = _redis(processes, folder, host, made.redis)
        phoenix = start_phoenix(processes, folder / "phoenix", free_port(), free_port(), host=host)
        s3 = stack.enter_context(_s3(host))
        llm = stack.enter_context(llm_server(host))
        wait_for_phoenix(processes, phoenix)
        yield Servers(host, made, processes, postgres, redis, phoenix, s3, llm)


def _postgres(processes: Processes, folder: Path, host: str, password: str) -> int:
    """A server with nothing in it but the user `DATABASE_USER`."""
    found = [shutil.which("postgres"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")))]
    server = next(filter(None, reversed(found)), None)
    if server is None:
        pytest.skip("postgres is not installed (apt-get install postgresql)")
    folder.mkdir()
    (folder / "password").write_text(password)
    as_user = []
    if os.getuid() == 0:  # which Postgres refuses to be
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        folder.parent.chmod(0o711)
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
    data, initdb = folder / "data", Path(server).with_name("initdb")
    options = ["-U", DATABASE_USER, "-A", "scram-sha-256", "--pwfile", folder / "password", "--no-sync"]
    subprocess.run([*as_user, initdb, "-D", data, *options], check=True, capture_output=True, cwd=folder)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")
    port = free_port()
    command = [*as_user, server, "-D", str(data), "-h", host, "-p", str(port), "-k", str(folder), "-c", "fsync=off"]
    processes.start("postgres", command, env={}, cwd=folder)
    return port


def _redis(processes: Processes, folder: Path, host: str, password: str) -> int:
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    port = free_port()
    command = [server, "--port", str(port), "--bind", host, "--save", "", "--requirepass", password]
    processes.start("redis", command, env={}, cwd=folder)
    return port


@contextmanager
def _s3(host: str) -> Generator[str]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=address, region_name=REGION, aws_access_key_id="e2e", aws_secret_access_key="e2e"
    )
    client.create_bucket(Bucket=BUCKET)
    yield address
    server.stop()
