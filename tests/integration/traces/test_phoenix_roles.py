"""Keys of a real Phoenix with authentication: a viewer's reads little and writes nothing, and that is told as that."""

import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg
import dspy
import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.stack import start_phoenix, wait_for_phoenix
from autoopt_pipeline.doctor import servers
from autoopt_pipeline.doctor.findings import Check, Finding, Status, examine
from autoopt_pipeline.errors import PhoenixRefused
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.orchestration.assets import build_module_assets
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.run_history.failures import causes_of
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.serving import Serving, trace_to_phoenix
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from tests.support.command_line import AGENTS, autoopt
from tests.support.project import PROJECT

ADMIN = "1a-secret-of-the-administrator-of-the-tests"
REMEDY = "set AUTOOPT_PHOENIX_API_KEY to a system key, or to a key of a user who is MEMBER or ADMIN"
MAY_NOT = "its key may not do this (403: Viewers cannot perform this action.)"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("phoenix-with-users")
    command = folder / "phoenix"  # it takes its secrets from the environment
    command.write_text(
        "#!/bin/sh\nexport PHOENIX_ENABLE_AUTH=true PHOENIX_SECRET=0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a\n"
        f"export PHOENIX_ADMIN_SECRET={ADMIN}\n"
        f'exec {shlex.quote(str(PROJECT / ".venv-phoenix" / "bin" / "phoenix"))} "$@"\n'
    )
    command.chmod(0o700)
    with Processes(folder / "logs") as processes, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOOPT_PHOENIX_COMMAND", str(command))
        address = start_phoenix(processes, folder / "data", free_port(), free_port())
        wait_for_phoenix(processes, address)
        yield address


@pytest.fixture(scope="module")
def keys(endpoint: str) -> Mapping[str, str]:
    """A key of a user of each role, one of the system's, and one of nobody."""
    admin = httpx.Client(base_url=endpoint, headers={"Authorization": f"Bearer {ADMIN}"})
    made = admin.post("/v1/system/api_keys", json={"data": {"name": "pipeline"}}).raise_for_status()
    found = {"SYSTEM": made.json()["data"]["key"], "NOBODY": "px-of-nobody-0123456789"}
    for role in ("ADMIN", "MEMBER", "VIEWER"):
        login = {"email": f"{role.lower()}@example.com", "password": "Passw0rd-of-the-tests"}
        user = {**login, "username": role, "role": role, "auth_method": "LOCAL"}
        admin.post("/v1/users", json={"user": user, "send_welcome_email": False}).raise_for_status()
        person = httpx.Client(base_url=endpoint)
        person.post("/auth/login", json=login).raise_for_status()
        made = person.post("/v1/user/api_keys", json={"data": {"name": "mine"}}).raise_for_status()
        found[role] = made.json()["data"]["key"]
    return found


def looked_at(endpoint: str, key: str, home: Path) -> Finding:
    parts = Connections(Settings(home=home, phoenix_endpoint=endpoint, phoenix_api_key=key))
    return next(found for _, found in examine([Check("phoenix", lambda: servers.phoenix(parts), seconds=60)]))


@pytest.mark.parametrize("role", ["SYSTEM", "ADMIN", "MEMBER"])
def test_doctor_passes_keys_that_may_do_what_a_run_does_and_leaves_nothing(
    role: str, endpoint: str, keys: Mapping[str, str], tmp_path: Path
) -> None:
    found = looked_at(endpoint, keys[role], tmp_path)
    assert found.status is Status.OK
    assert "the key may read and write" in found.what
    projects = httpx.get(f"{endpoint}/v1/projects", headers={"Authorization": f"Bearer {ADMIN}"}).json()["data"]
    assert [project["name"] for project in projects if not project["name"].startswith("t")] == ["default"]


def test_doctor_says_of_a_viewers_key_what_it_may_not_and_which_may(
    endpoint: str, keys: Mapping[str, str], tmp_path: Path
) -> None:
    found = looked_at(endpoint, keys["VIEWER"], tmp_path)
    assert (found.status, found.what, found.remedy) == (Status.FAIL, f"Phoenix {endpoint}: {MAY_NOT}", REMEDY)
    found = looked_at(endpoint, keys["NOBODY"], tmp_path)
    assert (found.status, found.what) == (Status.FAIL, f"Phoenix {endpoint}: the key is refused (401)")


def test_a_run_with_a_viewers_key_says_the_same(
    endpoint: str,
    keys: Mapping[str, str],
    store: TenantConfigStore,
    home: Path,
    tenant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = {"AUTOOPT_PHOENIX_ENDPOINT": endpoint, "AUTOOPT_PHOENIX_API_KEY": keys["MEMBER"]}
    autoopt("tenants", "add", tenant, *AGENTS)
    autoopt("simulate", tenant, "--traces", "20", env=env)
    env["AUTOOPT_PHOENIX_API_KEY"] = keys["VIEWER"]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with open_instance(home) as dagster:
        run = dg.materialize(
            build_module_assets(),
            selection=["routing"],
            partition_key=tenant,
            instance=dagster,
            resources={"services": Services()},
            raise_on_error=False,
        )
        assert causes_of(dagster, run.run_id)["routing"] == f"Phoenix {endpoint}: {MAY_NOT} -> {REMEDY}"


@pytest.mark.parametrize("role", ["VIEWER", "NOBODY"])
def test_serving_answers_and_tells_that_spans_and_feedback_are_refused_for_good(
    role: str, endpoint: str, keys: Mapping[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider()
    trace_to_phoenix(endpoint, keys[role], tracer_provider=provider)
    lm = dspy.LM("stand-in/nearest-demo", engine=StandInEngine(), cache=False)
    serving = Serving(
        str(tmp_path), lm=lm, tracer_provider=provider, phoenix_endpoint=endpoint, phoenix_api_key=keys[role]
    )
    try:
        for _ in range(2):
            decision = serving.decide("acme", "routing", agents=["a_agent", "b_agent"], query="where is the report?")
            provider.force_flush()
        why = MAY_NOT if role == "VIEWER" else "the key is refused (401)"
        assert [(p.where, p.what) for p in serving.problems() if p.where != "artifacts"] == [
            ("spans", f"Phoenix {endpoint}: {why}")
        ]
        assert sum("spans are lost" in message for message in caplog.messages) == 1
        with pytest.raises(PhoenixRefused) as error:
            serving.feedback(decision, correct=True, wait=True)
        assert why in str(error.value)
        serving.feedback(decision, correct=True)
        serving.flush()
        assert {problem.where for problem in serving.problems()} >= {"feedback", "spans"}
    finally:
        provider.shutdown()
        serving.close()
    assert keys[role] not in caplog.text


def test_a_key_that_cannot_be_sent_is_told_where_it_is_given(endpoint: str) -> None:
    """And not by a thread that sends spans, or as an error of Unicode."""
    code = f"""
from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.serving import Serving, trace_to_phoenix
for give in (lambda: trace_to_phoenix({endpoint!r}, "px-SECRETkey12\\u200b"),
             lambda: Serving("/tmp", phoenix_endpoint={endpoint!r}, phoenix_api_key="px-SECRETkey12\\u200b")):
    try:
        give()
    except InvalidSettings as e:
        print(e)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    line = "the key given for Phoenix: character 15 of 15 is ZERO WIDTH SPACE (U+200B), which HTTP cannot carry"
    assert said.splitlines() == [f"{line} -> copy the key again, without invisible characters"] * 2
