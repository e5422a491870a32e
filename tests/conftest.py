"""Real servers for the tests, started once and gone afterwards."""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import hypothesis
import pytest

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.devtools.minilm import ENCODER, is_made
from autoopt_pipeline.devtools.processes import LOOPBACK, Processes, free_port
from autoopt_pipeline.devtools.smollm2 import is_installed, start_smollm2
from autoopt_pipeline.devtools.stack import start_phoenix, wait_for_phoenix
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.phoenix_server import PhoenixServer
from tests.support.postgres import new_postgres

# How long an example takes is the machine's affair. The same commit tries the same examples each time, so that nobody
# repeats a run for luck; `make fuzz` takes the other profile, which tries others.
hypothesis.settings.register_profile("quick", deadline=None, derandomize=True)
hypothesis.settings.register_profile(
    "long", deadline=None, max_examples=2000, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("quick")


PHOENIX_COMMAND = "AUTOOPT_PHOENIX_COMMAND"
"""Tries the tests with a Phoenix server of another version."""


LONG = [
    "test_demo",
    "test_assets",
    "test_real_model",
    "test_wheel",
    "test_modules_learn",
    "test_keys_in_the_wild",
    "test_secrets",
    "test_in_chromium",
    "test_optimizers",
    "test_pipeline",
    "test_dagster_ui",
    "test_no_lookups",
    "test_add_a_module",
    "test_phoenix_contract",
    "test_run_limits",
    "test_kills",
    "test_serving_phoenix",
    "test_answer_formats",
    "test_phoenix_silent",
    "test_progress",
    "test_experiments",
    "test_answer_checkpoint",
    "test_trigger",
    "test_definitions",
    "test_repeated_runs",
    "test_example_service",
    "test_cli",
    "test_killed_runs",
    "test_documents",
    "test_alert_sensor",
]
"""Files that take a minute or more. They begin first, so that at the end no worker is left alone with one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _no_settings_of_the_user() -> None:
    """Tests must not meet the developer's own Phoenix, store or Dagster instance."""
    for name in {*os.environ} - {PHOENIX_COMMAND}:
        if name.startswith(("AUTOOPT_", "PHOENIX_", "DAGSTER_HOME", "CONFIG_STORE_URL", "OPENAI_")):
            del os.environ[name]
    os.environ["PHOENIX_DISCOVER_CONFIG"] = "false"


@pytest.fixture(autouse=True)
def _variables_end_with_their_test() -> Iterator[None]:
    """The command line and Dagster set variables of this process, where the next test would meet them."""
    before = dict(os.environ)
    yield
    for name in {*os.environ} - {*before}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("logs")) as group:
        yield group


@pytest.fixture(scope="session")
def phoenix_on_sqlite(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> PhoenixServer:
    folder = tmp_path_factory.mktemp("phoenix")
    endpoint = start_phoenix(processes, folder, free_port(), free_port())
    wait_for_phoenix(processes, endpoint)
    return PhoenixServer(endpoint, f"sqlite:///{folder / 'phoenix.db'}")


@pytest.fixture(scope="session")
def phoenix_on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PhoenixServer]:
    folder = tmp_path_factory.mktemp("phoenix-on-postgres")
    with new_postgres() as database, Processes(folder / "logs") as group:
        database.start(group)
        endpoint = start_phoenix(group, folder, free_port(), free_port(), database_url=database.url)
        wait_for_phoenix(group, endpoint)
        yield PhoenixServer(endpoint, database.url)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module of tests that says `ON_POSTGRES_TOO = True` meets Phoenix on both databases, as production has it."""
    if "phoenix_server" in metafunc.fixturenames and getattr(metafunc.module, "ON_POSTGRES_TOO", False):
        metafunc.parametrize("phoenix_server", ["sqlite", "postgres"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def phoenix_server(request: pytest.FixtureRequest) -> PhoenixServer:
    """A real Phoenix server, shared by all tests: each uses projects of its own."""
    return request.getfixturevalue(f"phoenix_on_{getattr(request, 'param', 'sqlite')}")


@pytest.fixture(scope="session")
def phoenix(phoenix_server: PhoenixServer) -> Phoenix:
    return Phoenix(phoenix_server.endpoint)


@pytest.fixture(scope="session")
def smollm2(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a small real language model, served on this machine."""
    if not is_installed():
        pytest.skip("SmolLM2 is not installed (make .venv-lm/.installed)")
    return start_smollm2(processes, tmp_path_factory.mktemp("smollm2"), free_port())


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a small real sentence encoder."""
    if not is_made():
        pytest.skip("the sentence encoder is not made (make encoder)")
    return ENCODER


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Redis server."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    import redis
    from redis.backoff import ConstantBackoff
    from redis.retry import Retry

    folder = tmp_path_factory.mktemp("redis")
    port = free_port()
    with Processes(folder) as group:
        group.start("redis", [server, "--port", str(port), "--bind", LOOPBACK, "--save", ""], env={}, cwd=folder)
        client = redis.Redis(port=port, retry=Retry(ConstantBackoff(0.1), 100))
        client.ping()
        yield f"redis://{LOOPBACK}:{port}/0"


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """A real Redis server that holds nothing yet."""
    import redis

    redis.Redis.from_url(redis_server).flushall()
    return redis_server


@pytest.fixture
def tenant() -> str:
    """A tenant nobody else uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A real Dagster instance on SQLite in a folder of its own."""
    with dg.instance_for_test() as opened:
        yield opened


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty DAGSTER_HOME with the project's own dagster.yaml."""
    from autoopt_pipeline.devtools.stack import copy_instance

    copy_instance(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store(home: Path, phoenix: Phoenix, monkeypatch: pytest.MonkeyPatch) -> TenantConfigStore:
    """The configurations of a home whose settings name the real Phoenix, where traces count at once."""
    monkeypatch.setenv("AUTOOPT_HOME", str(home / ".autoopt"))
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    return open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")


@pytest.fixture
def parts(store: TenantConfigStore) -> Connections:
    """The connections of that home."""
    return Connections(load_settings())
