"""What is told of a server that is too old, or that is not Phoenix at all."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from autoopt_pipeline.errors import AutooptError, PhoenixRefused
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import AGENTS, autoopt
from tests.support.foreign_server import MASKED, Server, answering


@pytest.fixture
def old() -> Iterator[Server]:
    with answering(MASKED, version="15.12.0") as server:
        yield server


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["status", "acme"], 2),
        (["why", "acme", "routing"], 2),
        (["trigger", "--tenant-id", "acme"], 2),
        (["trigger", "--tenant-id", "acme", "--module", "routing", "--force"], 2),
        (["traces", "stats", "acme"], 2),
        (["traces", "sample", "acme"], 2),
        (["simulate", "acme", "--traces", "5"], 2),
        (["doctor"], 2),
    ],
)
def test_every_command_says_that_phoenix_is_too_old(home: Path, old: Server, command: list[str], status: int) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    said = autoopt(*command, status=status, env={"AUTOOPT_PHOENIX_ENDPOINT": old.url})
    assert "Phoenix 15.12.0 is too old -> use Phoenix 17.17 to 20" in " ".join(said.split())
    assert "unexpected error" not in said
    assert "Traceback" not in said
    assert old.asked


def test_the_sensor_says_it_too(home: Path, old: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from autoopt_pipeline.orchestration.assets import build_module_assets
    from autoopt_pipeline.orchestration.sensors.optimization import build_sensors

    autoopt("tenants", "add", "acme", *AGENTS)
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", old.url)
    assets = dg.AssetSelection.assets(*(asset.key for asset in build_module_assets()))
    (sensor,) = [s for s in build_sensors(load_settings(), assets) if s.name == "auto_optimization_sensor"]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        context = dg.build_sensor_context(instance=instance, resources={"services": Services()})
        with pytest.raises(AutooptError, match=r"15\.12\.0 is too old -> use Phoenix 17\.17 to 20") as error:
            sensor(context)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["17.16.0", "17.9.1", "4.0.0rc1"])
def test_below_the_least_version_nothing_is_read(version: str) -> None:
    with answering(b'{"data": {"p0": null}}', version=version) as server, pytest.raises(PhoenixRefused, match=version):
        Phoenix(server.url).projects(["any"])


@pytest.mark.parametrize("version", ["17.17.0", "18.0.0", "20.26.1", "21.0.0", "a-fork", None])
def test_from_there_on_and_where_a_proxy_hides_the_version_it_is_read(version: str | None) -> None:
    with answering(b'{"data": {"p0": null}}', version=version) as server:
        assert Phoenix(server.url).projects(["any"]) == {}
        assert server.asked == ["POST /graphql"]


STRANGERS = {
    "a page": (200, b"<html>welcome</html>"),
    # As Dagster's webserver answered.
    "Dagster's GraphQL": (400, b'{"data":null,"errors":[{"message":"Cannot query field \'getProjectByName\'"}]}'),
    "another GraphQL": (200, b'{"errors": [{"message": "Cannot query field \'getProjectByName\'"}]}'),
    "a list": (200, b"[]"),
    "nothing": (200, b""),
    "an unknown path": (404, b"not found"),
    "an unknown method": (405, b""),
}


@pytest.mark.parametrize(("status", "body"), STRANGERS.values(), ids=STRANGERS.keys())
def test_a_server_that_is_not_phoenix_is_told_as_that(home: Path, status: int, body: bytes) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    with answering(body, status=status) as server:
        for command in (["traces", "stats", "acme"], ["doctor"]):
            said = " ".join(autoopt(*command, status=2, env={"AUTOOPT_PHOENIX_ENDPOINT": server.url}).split())
            assert f"{server.url} answers HTTP {status}, and is not Phoenix -> set AUTOOPT_PHOENIX_ENDPOINT" in said


def test_what_a_later_phoenix_does_not_understand_is_told_with_the_versions_that_do() -> None:
    unknown = b'{"data": null, "errors": [{"message": "Cannot query field \'traceCount\' on type \'Project\'."}]}'
    with answering(unknown, version="31.0.0") as server, pytest.raises(PhoenixRefused) as error:
        Phoenix(server.url).projects(["any"])
    assert "Cannot query field 'traceCount'" in error.value.what
    assert "use Phoenix 17.17 to 20" in error.value.remedy
