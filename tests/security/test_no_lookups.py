"""No name is looked up, and nothing is connected to, that nobody configured: every process writes down what it asks."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoopt_pipeline.devtools.processes import LOOPBACK
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import AGENTS, autoopt
from tests.support.llm_server import LLMServer, llm_server
from tests.support.project import PROJECT

RECORDER = """
import os, sys

def record(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    with open(os.environ["RECORDED"], "a") as file:
        file.write(f"{host.decode() if isinstance(host, bytes) else host}\\n")

sys.addaudithook(record)
"""
"""Runs when Python starts, in every child as well. Python tells its audit hooks whatever library asks."""


class Recorded:
    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(RECORDER)
        self._file = folder / "hosts"
        self.env = {"PYTHONPATH": str(folder), "RECORDED": str(self._file)}

    def hosts(self) -> set[str]:
        return set(self._file.read_text().split()) if self._file.exists() else set()


@pytest.fixture
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("recorded") / "site")


@pytest.fixture
def lm() -> Iterator[LLMServer]:
    """Has a name, `localhost`, so that the recorder is seen to record."""
    with llm_server() as server:
        server.url = server.url.replace(LOOPBACK, "localhost")
        yield server


def run(command: str, *arguments: str, cwd: Path, **env: str) -> str:
    """What a command says in a process of its own, whatever its status."""
    done = subprocess.run(
        [Path(sys.executable).parent / command, *arguments],
        env={**os.environ, **env}, cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def python(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_name_that_is_looked_up_is_recorded(recorded: Recorded) -> None:
    """As what this is about was: DSPy's price list, where it is not told to stay."""
    code = "from dspy.clients.model_metadata import source_info; print(source_info()['source'])"
    python(code, **recorded.env, LITELLM_LOCAL_MODEL_COST_MAP="False")
    assert "raw.githubusercontent.com" in recorded.hosts()


@pytest.mark.parametrize("model", ["openai/some-model", "together_ai/some-model"])
def test_doctor_and_a_run_look_up_the_endpoint_of_the_model_and_nothing_else(
    model: str, store: TenantConfigStore, home: Path, phoenix: Phoenix, lm: LLMServer, recorded: Recorded
) -> None:
    tenant = "no-lookups"  # its traffic is the same each time
    autoopt("tenants", "add", tenant, *AGENTS)
    autoopt("config", "set", tenant, "budget.max_lm_calls=500", 'retry={"max_retries": 0}')
    if phoenix.project(project_name(tenant)) is None:
        autoopt("simulate", tenant, "--traces", "500")
    env = {
        **recorded.env,
        "AUTOOPT_LM": model,
        "AUTOOPT_LM_API_BASE": lm.url,
        "AUTOOPT_LM_API_KEY_ENV": "SHOP_API_KEY",
        "SHOP_API_KEY": "sk-of-the-shop-1234",
    }
    told = run("autoopt", "doctor", "--call-lm", cwd=home, **env)
    assert f"{model} for 1 tenants; SHOP_API_KEY is set here; it answered" in told
    assert lm.calls == 2  # a question, and whether a schema is enforced
    assert recorded.hosts() - {LOOPBACK, "::1"} == {"localhost"}

    module = ["--select", "routing", "--partition", tenant, "-m", "autoopt_pipeline.definitions"]
    assert "RUN_SUCCESS" in run("dagster", "asset", "materialize", *module, cwd=home, **env)
    assert lm.calls > 100
    assert recorded.hosts() - {LOOPBACK, "::1"} == {"localhost"}
    assert LOOPBACK in recorded.hosts()  # Phoenix


@pytest.mark.parametrize("model", ["openai/some-model", "together_ai/some-model"])
def test_serving_looks_up_what_the_application_names_and_nothing_else(
    model: str, tmp_path: Path, phoenix: Phoenix, tenant: str, lm: LLMServer, recorded: Recorded
) -> None:
    """The application imports DSPy first, and has a model of its own."""
    code = f"""
import dspy
from autoopt_pipeline.serving import Serving, trace_to_phoenix
lm = dspy.LM({model!r}, api_base={lm.url!r}, api_key="sk-of-the-shop-1234", cache=False)
provider = trace_to_phoenix({phoenix.endpoint!r})
serving = Serving({str(tmp_path)!r}, lm=lm, phoenix_endpoint={phoenix.endpoint!r})
decision = serving.decide({tenant!r}, "routing", agents=["search_agent", "report_agent"], query="where is the report?")
provider.force_flush()
serving.feedback(decision, correct=True)
serving.flush()
print(decision.values["agent"], [problem for problem in serving.problems() if problem.where != "artifacts"])
"""
    assert python(code, **recorded.env).split()[1:] == ["[]"]
    assert lm.calls == 1
    assert recorded.hosts() - {LOOPBACK, "::1"} == {"localhost"}


def test_the_image_says_so_too() -> None:
    """There LiteLLM may be imported by what is not ours."""
    dockerfile = (PROJECT / "Dockerfile").read_text()
    for name in ("LITELLM_LOCAL_MODEL_COST_MAP", "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS"):
        assert f"{name}=True" in dockerfile
        assert python(f"import os, autoopt_pipeline; print(os.environ[{name!r}])") == "True\n"
        assert python(f"import os, autoopt_pipeline; print(os.environ[{name!r}])", **{name: "False"}) == "False\n"
