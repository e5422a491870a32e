"""No secret is in anything that a run, a failing run or a command leaves behind: every byte of it is searched."""

import base64
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import httpx
import pytest
import redis
from dagster._core.instance.ref import InstanceRef

from autoopt_pipeline.devtools.processes import LOOPBACK, Processes, free_port
from autoopt_pipeline.devtools.stack import copy_instance, start_phoenix, wait_for_phoenix
from autoopt_pipeline.orchestration.assets import build_module_assets
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.run_history.failures import causes_of
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import autoopt
from tests.support.kube_api import KubeApi, instance_of_jobs, launched
from tests.support.llm_server import LLMServer, llm_server
from tests.support.project import PROJECT
from tests.support.s3 import s3_bucket

SECRETS = {
    name: f"s3cr3t/{name}+of?n0body=&{number}xyzzy"
    for number, name in enumerate(["phoenix", "lm", "redis", "postgres", "slack", "webhook", "s3", "ftp", "wrong"])
}
TENANT = "acme"


def forms(secret: str) -> set[bytes]:
    """A secret as it is, as URLs have it, and as base64 has it at whatever place of a longer text."""
    raw = secret.encode()
    encoded = {base64.b64encode(b"-" * shift + raw)[(0, 2, 3)[shift] : -4] for shift in range(3)}
    return {raw, quote(secret).encode(), quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode(), *encoded}


def leaks(content: bytes) -> set[str]:
    return {name for name, secret in SECRETS.items() if any(form in content for form in forms(secret))}


class Place:
    """An instance with every secret in its environment, and all that it leaves behind."""

    def __init__(self, folder: Path, env: dict[str, str], phoenix: Phoenix, llm: LLMServer) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.env = env
        self.phoenix = phoenix
        self.llm = llm
        self._commands = 0

    def autoopt(self, *arguments: str, status: int = 0, env: Mapping[str, str] | None = None) -> str:
        return self._kept(autoopt(*arguments, status=status, env={**self.env, **(env or {})}))

    def fail(self, **env: str) -> str:
        """Why a run in this process failed. Dagster stores the error with all its causes."""
        with pytest.MonkeyPatch.context() as patch, open_instance(self.home) as instance:
            for name, value in env.items():
                patch.setenv(name, value)
            result = dg.materialize(
                build_module_assets(),
                selection=["routing"],
                partition_key=TENANT,
                instance=instance,
                resources={"services": Services()},
                raise_on_error=False,
            )
            return self._kept(causes_of(instance, result.run_id)["routing"])

    def materialize(self, module: str, **env: str) -> str:
        """What `dagster asset materialize` says, in a process of its own, whose output Dagster keeps, too."""
        command = [str(Path(sys.executable).parent / "dagster"), "asset", "materialize", "--select", module]
        done = subprocess.run(
            [*command, "--partition", TENANT, "-m", "autoopt_pipeline.definitions"],
            env={**os.environ, **self.env, **env}, cwd=self.home, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return self._kept(f"{done.stdout}{done.stderr}exit {done.returncode}")

    def _kept(self, said: str) -> str:
        self._commands += 1
        (self.folder / f"said-{self._commands}.txt").write_text(said)
        return said

    def left_behind(self) -> Iterator[tuple[str, bytes]]:
        """Files of Dagster, Phoenix and the commands, the artifacts in S3, and what Redis holds."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                yield str(path.relative_to(self.folder)), path.read_bytes()
        files = ObjectStore(self.env["AUTOOPT_ARTIFACTS_URL"])
        for path in files.tree(TENANT):
            yield f"s3/{path}", files.read(path) or b""
        stored = redis.Redis.from_url(self.env["AUTOOPT_CONFIG_STORE_URL"])
        read: dict[Any, Callable[[Any], object]] = {
            b"hash": stored.hgetall,
            b"list": lambda key: stored.lrange(key, 0, -1),
            b"zset": lambda key: stored.zrange(key, 0, -1),
        }
        for key in stored.scan_iter():
            kept = read[stored.type(key)](key)
            yield f"redis/{key.decode()}", repr(kept).encode()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_bucket() as address:
        yield address


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, s3: str) -> Iterator[Place]:
    folder, hidden = tmp_path_factory.mktemp("left-behind"), tmp_path_factory.mktemp("hidden")
    copy_instance(folder / "home")
    phoenix_key = "1a" + SECRETS["phoenix"]
    with Processes(folder / "logs") as processes, llm_server() as llm, pytest.MonkeyPatch.context() as patch:
        with_auth = hidden / "phoenix"  # Phoenix takes its secrets from the environment
        with_auth.write_text(
            "#!/bin/sh\nexport PHOENIX_ENABLE_AUTH=true PHOENIX_SECRET=0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a\n"
            f'export PHOENIX_ADMIN_SECRET={shlex.quote(phoenix_key)}\nexec {_phoenix()} "$@"\n'
        )
        with_auth.chmod(0o700)
        patch.setenv("AUTOOPT_PHOENIX_COMMAND", str(with_auth))
        endpoint = start_phoenix(processes, folder / "phoenix", free_port(), free_port())
        redis_port = free_port()
        processes.start(
            "redis",
            ["redis-server", "--port", str(redis_port), "--bind", LOOPBACK, "--requirepass", SECRETS["redis"]],
            env={},
            cwd=hidden,
        )
        wait_for_phoenix(processes, endpoint)
        env = {
            "DAGSTER_HOME": str(folder / "home"),
            "AUTOOPT_HOME": str(folder / "home" / ".autoopt"),
            "AUTOOPT_CONFIG_STORE_URL": f"redis://:{quote(SECRETS['redis'], safe='')}@{LOOPBACK}:{redis_port}/0",
            "AUTOOPT_ARTIFACTS_URL": f"{s3}/secrets",
            "AWS_SECRET_ACCESS_KEY": SECRETS["s3"],
            "AUTOOPT_PHOENIX_ENDPOINT": endpoint,
            "AUTOOPT_PHOENIX_API_KEY": phoenix_key,
            "AUTOOPT_LM": "openai/some-model",
            "AUTOOPT_LM_API_BASE": llm.url,
            "AUTOOPT_LM_API_KEY_ENV": "HIDDEN_API_KEY",
            "HIDDEN_API_KEY": SECRETS["lm"],
            "AUTOOPT_ALERT_SLACK_URL": f"http://{LOOPBACK}:9/services/{quote(SECRETS['slack'], safe='')}",
            "AUTOOPT_ALERT_WEBHOOK_URL": f"http://{LOOPBACK}:9/{quote(SECRETS['webhook'], safe='')}",
            "AUTOOPT_ALERT_WEBHOOK_SECRET": SECRETS["webhook"],
            "AUTOOPT_SETTLING_SECONDS": "0",
        }
        for name, value in env.items():
            patch.setenv(name, value)
        yield Place(folder, env, Phoenix(endpoint, api_key=phoenix_key), llm)


def _phoenix() -> str:
    return str(PROJECT / ".venv-phoenix" / "bin" / "phoenix")


def test_nothing_that_is_left_behind_holds_a_secret(place: Place) -> None:
    agents = [f"--agent={name}=helps" for name in ("search_agent", "summary_agent", "report_agent", "support_agent")]
    place.autoopt("tenants", "add", TENANT, *agents)
    place.autoopt("config", "set", TENANT, "budget.max_lm_calls=500", 'retry={"max_retries": 0}')
    place.autoopt("simulate", TENANT, "--traces", "400")

    assert "RUN_SUCCESS" in place.materialize("routing")
    assert place.llm.keys == {f"Bearer {SECRETS['lm']}"}
    with open_instance(place.home) as dagster:
        event = dagster.get_latest_materialization_event(dg.AssetKey("routing"))
        assert event
        assert event.asset_materialization

    place.llm.always = 401  # and quotes the key
    assert "trouble with Bearer ***" in place.materialize("modality")
    place.llm.always = None
    login = place.phoenix.endpoint.replace("://", f"://me:{quote(SECRETS['phoenix'], safe='')}@")
    assert "the key is refused (401)" in place.fail(AUTOOPT_PHOENIX_ENDPOINT=login)
    no_redis = f"redis://:{quote(SECRETS['redis'], safe='')}@{LOOPBACK}:9/0"
    assert "Redis is up" in place.fail(AUTOOPT_CONFIG_STORE_URL=no_redis)

    for arguments, status, env in (
        (["status"], 0, {}),
        (["doctor"], 2, {}),
        (["doctor", "--json"], 2, {"AUTOOPT_CONFIG_STORE_URL": no_redis}),
        (["config", "get", TENANT], 0, {}),
        (["tenants", "export"], 0, {}),
        (["versions", TENANT, "routing", "--json"], 0, {}),
        (["alerts", "test"], 2, {}),
        (["traces", "stats", TENANT], 2, {"AUTOOPT_PHOENIX_API_KEY": SECRETS["wrong"]}),
        (["traces", "stats", TENANT], 2, {"AUTOOPT_PHOENIX_ENDPOINT": login}),
        (
            ["versions", TENANT, "routing"],
            2,
            {"AUTOOPT_ARTIFACTS_URL": f"ftp://me:{quote(SECRETS['ftp'], safe='')}@{LOOPBACK}:9/x"},
        ),
        (["config", "set", TENANT, f"lm.api_key_env={SECRETS['lm']}"], 2, {}),
        (["config", "set", TENANT, f'lm={{"model": "x", "api_base": "http://a:{SECRETS["lm"]}@b"}}'], 2, {}),
        (["status"], 2, {"AUTOOPT_LM_API_KEY_ENV": SECRETS["lm"]}),
    ):
        place.autoopt(*arguments, status=status, env=env)

    left = dict(place.left_behind())
    kinds = (
        "home/.autoopt/dagster/",
        "phoenix/phoenix.db",
        "logs/",
        "said-",
        f"s3/{TENANT}/routing/versions",
        "redis/",
    )
    for kind in kinds:
        assert any(name.startswith(kind) for name in left), f"nothing is left of {kind}"
    assert {name: found for name, content in left.items() if (found := leaks(content))} == {}


def test_the_job_of_a_run_and_the_instance_that_it_is_told_of_hold_no_secret(place: Place, tmp_path: Path) -> None:
    api = KubeApi()
    with instance_of_jobs(api, tmp_path) as instance:
        job = launched(instance, api, {"dagster/partition": TENANT})
    assert leaks(json.dumps(job).encode()) == set()
    (tmp_path / "dagster.yaml").write_text("storage: {postgres: {postgres_url: {env: HIDDEN_POSTGRES_URL}}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIDDEN_POSTGRES_URL", f"postgresql://me:{quote(SECRETS['postgres'], safe='')}@{LOOPBACK}:9/x")
        told = dg.serialize_value(InstanceRef.from_dir(str(tmp_path)))
        assert "HIDDEN_POSTGRES_URL" in told
        assert leaks(told.encode()) == set()
        said = place.autoopt("status", status=2, env={"DAGSTER_HOME": str(tmp_path)})
    assert leaks(said.encode()) == set()


@pytest.mark.parametrize(
    "form",
    [
        lambda secret: secret,
        quote,
        lambda secret: f"Basic {base64.b64encode(f'me:{secret}'.encode()).decode()}",
        lambda secret: base64.b64encode(f"redis://:{secret}@host".encode()).decode(),
        lambda secret: json.dumps({"key": secret}),
    ],
)
def test_the_search_finds_a_secret_in_whatever_form_it_is(form: Callable[[str], str]) -> None:
    for name, secret in SECRETS.items():
        assert leaks(f"before {form(secret)} after".encode()) == {name}
    assert leaks(b"nothing of the kind") == set()


def test_phoenix_refuses_who_has_no_key(place: Place) -> None:
    """Otherwise the run above would have needed none."""
    assert httpx.get(f"{place.phoenix.endpoint}/v1/projects").status_code == 401
