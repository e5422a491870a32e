"""Keys as people paste them, and servers that quote them: nothing that is said or stored holds a part of one."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pytest
from dagster._utils.error import serializable_error_info_from_exc_info

from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.secrets import PART
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import AGENTS, autoopt

LM_KEY = "sk-q7Xw/2Lm9+Vb4=Nz8pR5tY3"
PHOENIX_KEY = "px-H6kD/8sJ1+Gf3=Ae0cB9vM2"
KEYS = (LM_KEY, PHOENIX_KEY)


class Quoting:
    """A server that refuses every key with `status`, and quotes it in as many ways as come to mind."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.keys: set[str] = set()

    def message(self, header: str) -> str:
        key = header.removeprefix("Bearer ")
        self.keys.add(key)
        return f"bad {' '.join(quoted(key))}"


def quoted(key: str) -> list[str]:
    return [
        repr(key),
        json.dumps({"key": key}),
        json.dumps(json.dumps({"key": repr(key)})),
        key.replace("/", "\\/"),
        quote(key, safe=""),
        quote(base64.b64encode(f"me:{key}".encode()).decode()),
        repr(f"Bearer {key}".encode()),
        f"{key[:14]}...{key[-14:]}",
    ]


@pytest.fixture
def server() -> Iterator[tuple[Quoting, str]]:
    state = Quoting(401)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _refuse(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            error = {"message": state.message(self.headers["authorization"]), "type": "x", "code": None}
            raw = json.dumps({"error": error, "detail": error["message"]}).encode()
            self.send_response(state.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_DELETE = _refuse

        def log_message(self, format: str, *args: object) -> None:
            return

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield state, f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


def leaks(content: bytes) -> set[str]:
    """Parts of a key in the content: runs of its characters, or of what base64 makes of it."""
    found = set()
    for key in KEYS:
        forms = [key, quote(key, safe=""), key.replace("/", "\\/")]
        forms += [base64.b64encode(b"-" * shift + key.encode()).decode()[4:-4] for shift in range(3)]
        for form in forms:
            parts = (form[start : start + PART] for start in range(len(form) - PART + 1))
            found |= {part for part in parts if part.encode() in content}
    return found


def left_under(folder: Path) -> dict[str, set[str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    return {str(path): found for path in files if (found := leaks(path.read_bytes()))}


def run(command: str, *arguments: str, cwd: Path, **env: str) -> str:
    """What a command says in a process of its own, whatever its status; no key may be in it."""
    done = subprocess.run(
        [Path(sys.executable).parent / command, *arguments],
        env={**os.environ, **env}, cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert leaks(said.encode()) == set()
    return said


def materialize(home: Path, tenant: str, **env: str) -> str:
    module = ["--select", "routing", "--partition", tenant, "-m", "autoopt_pipeline.definitions"]
    return run("dagster", "asset", "materialize", *module, cwd=home, **env)


@pytest.fixture
def prepared(store: TenantConfigStore, home: Path, phoenix: Phoenix) -> str:
    """A tenant with enough traces for a run. They are sent once, and are the same each time for a tenant's name."""
    tenant = "keys-in-the-wild"
    autoopt("tenants", "add", tenant, *AGENTS)
    autoopt("config", "set", tenant, "budget.max_lm_calls=500", 'retry={"max_retries": 0}')
    if phoenix.project(project_name(tenant)) is None:
        autoopt("simulate", tenant, "--traces", "500")
    return tenant


def models(url: str, **more: str) -> dict[str, str]:
    named = {"AUTOOPT_LM": "openai/m", "AUTOOPT_LM_API_BASE": f"{url}/v1", "AUTOOPT_LM_API_KEY_ENV": "SHOP_API_KEY"}
    return {**named, "SHOP_API_KEY": f" {LM_KEY}\n", "AUTOOPT_PHOENIX_API_KEY": f"{PHOENIX_KEY}\n", **more}


def test_the_search_finds_what_it_is_to_find() -> None:
    assert all(leaks(written.encode()) for key in KEYS for written in quoted(key))
    assert leaks(b"nothing of the kind") == set()


@pytest.mark.parametrize(("lm", "status"), [("openai/m", 401), ("together_ai/m", 400)])
def test_doctor_and_a_run_leave_nothing_of_a_key_with_a_line_break_that_the_model_quotes(
    lm: str, status: int, prepared: str, home: Path, server: tuple[Quoting, str]
) -> None:
    quoting, url = server
    quoting.status = status
    env = models(url, AUTOOPT_LM=lm)
    told = run("autoopt", "doctor", "--call-lm", cwd=home, **env)
    assert "it does not answer" in told
    assert "***" in told
    said = materialize(home, prepared, **env)
    if status == 401:  # one refused request is not yet a failure
        assert "RUN_FAILURE" in said
    assert quoting.keys == {LM_KEY}  # as the endpoint's owner gave it, without the space
    why = run("autoopt", "why", prepared, "routing", cwd=home, **env)
    assert "***" in said + why
    run("autoopt", "status", prepared, "--json", cwd=home, **env)
    assert left_under(home) == {}


def test_commands_and_sensors_leave_nothing_of_the_key_that_phoenix_quotes(
    prepared: str, home: Path, server: tuple[Quoting, str]
) -> None:
    quoting, url = server
    env = models(url, AUTOOPT_PHOENIX_ENDPOINT=url)
    for status in (401, 403, 418):
        quoting.status = status
        for arguments in (("doctor",), ("status", prepared, "--json"), ("traces", "stats", prepared)):
            assert str(status) in run("autoopt", *arguments, cwd=home, **env)
    assert "RUN_FAILURE" in materialize(home, prepared, **env)
    assert quoting.keys == {PHOENIX_KEY}
    assert left_under(home) == {}


UNSENDABLE = "character 10 of 10 is ZERO WIDTH SPACE (U+200B), which HTTP cannot carry"


def test_a_key_that_http_cannot_carry_is_one_line_that_names_its_variable(
    prepared: str, home: Path, server: tuple[Quoting, str]
) -> None:
    _, url = server
    env = models(url, SHOP_API_KEY="sk-SECRET\u200b")
    told = run("autoopt", "doctor", "--call-lm", cwd=home, **env)
    line = f"environment variable SHOP_API_KEY: {UNSENDABLE} -> copy the key again, without invisible characters"
    assert f"fail  lm             {line}\n" in told
    assert "RUN_FAILURE" in materialize(home, prepared, **env)
    assert line in run("autoopt", "why", prepared, "routing", cwd=home, **env)

    env = models(url, AUTOOPT_PHOENIX_API_KEY="px-SECRET\u200b")
    line = f"environment variable AUTOOPT_PHOENIX_API_KEY: {UNSENDABLE} -> correct or unset AUTOOPT_PHOENIX_API_KEY"
    assert run("autoopt", "status", cwd=home, **env) == f"error: {line}\n"
    assert line in run("autoopt", "doctor", cwd=home, **env)
    del env["AUTOOPT_PHOENIX_API_KEY"]
    env |= {"PHOENIX_API_KEY": "px-SECRET\u200b"}
    assert run("autoopt", "status", cwd=home, **env) == f"error: {line.replace('AUTOOPT_PHOENIX', 'PHOENIX')}\n"


@pytest.mark.parametrize(
    "sensor",
    [
        "tenant_partitions_sensor",
        "auto_optimization_sensor",
        "rollout_monitor_sensor",
        "live_quality_sensor",
        "run_retention_sensor",
    ],
)
def test_what_fails_a_sensor_and_what_caused_it_hold_no_key(
    sensor: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster stores the error of a tick with its causes. Here a driver's own error, which nobody translates."""
    from autoopt_pipeline.definitions import defs

    def connect(services: Services) -> None:
        load_settings()
        raise RuntimeError(f"driver said {LM_KEY!r}") from ValueError(f"b'Bearer {LM_KEY}'")

    monkeypatch.setenv("SHOP_API_KEY", f"{LM_KEY}\n")
    monkeypatch.setattr(Services, "connect", connect)
    (found,) = [each for each in defs.sensors or () if each.name == sensor]
    with (
        dg.build_sensor_context(instance=instance, resources={"services": Services()}) as context,
        pytest.raises(RuntimeError) as e,
    ):
        found.evaluate_tick(context)
    told = str(serializable_error_info_from_exc_info((e.type, e.value, e.tb)))
    assert "driver said '***'" in told
    assert "b'Bearer ***'" in told
    assert leaks(told.encode()) == set()


@pytest.mark.parametrize("module", ["autoopt_pipeline.definitions", "autoopt_pipeline.cli.main"])
def test_what_libraries_log_in_our_processes_holds_no_key(module: str) -> None:
    """Steps and sensors import the definitions, and what they print is kept as compute logs."""
    code = f"""
import logging, os
import {module} as module
if hasattr(module, "run"):
    module.app = lambda: None
    module.run()
logging.getLogger("some.library").warning("asked with %r", {{"key": os.environ["SHOP_API_KEY"]}})
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SHOP_API_KEY": f"{LM_KEY}\n"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "asked with {'key': '***\\n'}" in done.stderr
