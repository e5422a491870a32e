"""docs/add-a-module.md is true: who does what it says, with an empty folder, ends with two promoted programs."""

import re
import shlex
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import httpx
import pytest

from autoopt_pipeline.devtools.processes import LOOPBACK, Processes, free_port
from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, sample_config
from autoopt_pipeline.devtools.stack import copy_instance
from autoopt_pipeline.modules.yaml_modules import DeclaredModule
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix
from tests.support.followed_documents import environment, follow
from tests.support.project import PROJECT

DOCUMENT = (PROJECT / "docs" / "add-a-module.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
PAGES = re.compile(r"^dagster-webserver .*$", re.MULTILINE)
COMMANDS = Path(sys.executable).parent


@dataclass(frozen=True)
class Followed:
    """What is there once a reader has done everything, in order."""

    home: Path
    tenant: str
    env: dict[str, str]
    output: str

    def artifacts(self, module: str) -> VersionStore:
        return VersionStore(ObjectStore(str(self.home / ".autoopt" / "artifacts")), self.tenant, module)

    def metadata(self, module: str) -> dict:
        with open_instance(self.home) as instance:
            event = instance.get_latest_materialization_event(dg.AssetKey(module))
        assert event
        assert event.asset_materialization
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}


@pytest.fixture(scope="module")
def followed(phoenix: Phoenix, tmp_path_factory: pytest.TempPathFactory) -> Followed:
    home, installed = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("installed")
    tenant = f"t{uuid.uuid4().hex[:12]}"  # the sample tenant acme, where no other test is
    copy_instance(home)
    write_config(
        open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"),
        sample_config(SAMPLE_TENANTS[0]).model_copy(update={"tenant_id": tenant}),
    )
    with open_instance(home) as instance:
        register_tenant(instance, tenant)
    env = environment(installed, DAGSTER_HOME=str(home), AUTOOPT_PHOENIX_ENDPOINT=phoenix.endpoint)
    own = [(kind, file, text.replace("acme", tenant)) for kind, file, text in BLOCKS]
    output = follow([(kind, file, text if file else PAGES.sub("", text)) for kind, file, text in own], home, env)
    return Followed(home, tenant, {**env, "AUTOOPT_MODULES_FILE": str(home / "own" / "modules.yaml")}, output)


def test_the_declared_module_is_an_asset(followed: Followed) -> None:
    assert re.search(r"^urgency$", followed.output, re.MULTILINE)


def test_the_sensor_knows_the_module_and_waits_for_new_traces(followed: Followed) -> None:
    row = re.search(rf"{followed.tenant}\s+urgency\s+(\S+)\s", followed.output)
    assert row, followed.output[-2000:]
    assert row[1] in {"too_few_traces", "not_due"}


@pytest.mark.parametrize("module", ["urgency", "triage"])
def test_its_first_program_is_promoted(followed: Followed, module: str) -> None:
    artifacts = followed.artifacts(module)
    active = artifacts.active()
    assert active
    (manifest,) = [each for each in artifacts.versions() if each.version == active.version]
    assert manifest.verdict == "promoted"
    assert manifest.parent is None
    assert manifest.incumbent_score is not None
    assert manifest.candidate_score is not None
    assert manifest.candidate_score > manifest.incumbent_score
    assert f"{active.version}  active" in re.sub(r" +", "  ", followed.output)


def test_what_it_says_of_numbers_holds(followed: Followed) -> None:
    metadata = followed.metadata("urgency")
    told = re.search(r"(\d+) requests reviewed", followed.output)
    assert told, followed.output[-2000:]
    reviewed = int(told[1])
    assert 330 <= reviewed <= 420
    assert metadata["spans_read"] == 500
    assert metadata["examples_holdout"] >= 100
    assert metadata["examples_holdout"] == pytest.approx(0.4 * reviewed, rel=0.25)


def test_the_metadata_that_it_tells_to_read_is_there(followed: Followed) -> None:
    named = re.findall(r"\*\*(\w+)\*\*", DOCUMENT[DOCUMENT.index("Read its metadata") :])
    assert set(named) - {"training_data"} == {"verdict", "reason", "incumbent_score", "candidate_score", "report"}
    for module in ("urgency", "triage"):
        assert set(named) - {"training_data"} <= followed.metadata(module).keys()


def test_half_marks_show_in_the_packages_scores(followed: Followed) -> None:
    (candidate,) = [each for each in followed.artifacts("triage").versions() if each.verdict == "promoted"]
    assert candidate.incumbent_score is not None
    assert candidate.candidate_score is not None
    cases = followed.metadata("triage")["examples_holdout"]
    assert (candidate.incumbent_score * cases * 2) == pytest.approx(round(candidate.incumbent_score * cases * 2))
    assert 0 < candidate.incumbent_score < candidate.candidate_score <= 1


def test_dagsters_pages_show_the_module(followed: Followed, tmp_path: Path) -> None:
    found = PAGES.search(DOCUMENT)
    assert found
    port = free_port()
    command = shlex.split(found[0].replace("3001", str(port)))
    with Processes(tmp_path) as own:
        own.start("pages", [str(COMMANDS / command[0]), *command[1:]], env=followed.env, cwd=followed.home)
        address = f"http://{LOOPBACK}:{port}"
        own.wait_for_http("pages", f"{address}/server_info", seconds=120)
        answer = httpx.post(f"{address}/graphql", json={"query": "{assetNodes{assetKey{path}}}"}, timeout=60).json()
    assert {"path": ["urgency"]} in [node["assetKey"] for node in answer["data"]["assetNodes"]]


def test_it_explains_every_field() -> None:
    explained = re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)
    assert explained == list(DeclaredModule.model_fields)
