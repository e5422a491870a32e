"""The documents are true: their commands run, what they show is really said, and their links lead somewhere."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from autoopt_pipeline.devtools.stack import copy_instance
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.traces.client import OLDEST_PHOENIX, SUPPORTED_PHOENIX, Phoenix
from tests.support.command_line import AGENTS, autoopt
from tests.support.project import PROJECT

DOCS = PROJECT / "docs"
DOCUMENTS = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md")]
DOCUMENTS += sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^( *)```(\w*)(?: (\S+))?\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)

FOLLOWED_ELSEWHERE = {
    "add-a-module.md": "test_add_a_module.py",
    "add-a-tenant.md": "test_operating_documents.py",
    "configuration.md": "test_operating_documents.py",
    "use-your-own-span-layout.md": "test_operating_documents.py",
}
FIRST = "trigger-and-status.md"
"""The page that makes the module learn, which the others find done."""
TENANT = "documented"
"""Always the same and nobody else's: the traffic that is played depends on the name."""
BACKUP = "back-up-and-restore.md"


def blocks(page: Path, kind: str) -> list[str]:
    return [text for _, found, _, text in BLOCK.findall(page.read_text()) if found == kind]


PAGES = sorted(page.name for page in DOCS.glob("*.md") if blocks(page, "sh"))


@dataclass(frozen=True)
class Place:
    """An instance with a tenant that stands for those of the documents."""

    home: Path
    tenant: str
    phoenix: str

    def follow(self, page: str) -> str:
        """Run the page's commands in order, and return what they print."""
        said = ""
        for text in blocks(DOCS / page, "sh"):
            for line in text.splitlines():
                said += self._run(line.replace("http://localhost:6006", self.phoenix))
        return said

    def _run(self, line: str) -> str:
        command = shlex.split(re.sub(r"\b(hooli|acme|default)\b", self.tenant, line), comments=True)
        if not command:
            return ""
        if command[0] == "autoopt":
            return autoopt(*command[1:])
        program = shutil.which(command[0], path=str(Path(sys.executable).parent)) or command[0]
        done = subprocess.run([program, *command[1:]], cwd=self.home, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def learnt(phoenix: Phoenix, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, str]]:
    """A tenant with traffic whose routing was promoted by the commands of the first page, and what these said."""
    place = Place(tmp_path_factory.mktemp("learnt"), TENANT, phoenix.endpoint)
    copy_instance(place.home)
    with pytest.MonkeyPatch.context() as patch:
        _enter(place, patch)
        autoopt("tenants", "add", place.tenant, *AGENTS)
        autoopt("simulate", place.tenant, "--traces", "400")
        yield place, place.follow(FIRST)


@pytest.fixture
def place(learnt: tuple[Place, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy of it for one test."""
    first, _ = learnt
    home = tmp_path / "home"
    shutil.copytree(first.home, home)
    own = Place(home, first.tenant, first.phoenix)
    _enter(own, monkeypatch)
    return own


def _enter(place: Place, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(place.home)
    patch.setenv("DAGSTER_HOME", str(place.home))
    patch.setenv("AUTOOPT_PHOENIX_ENDPOINT", place.phoenix)
    patch.setenv("AUTOOPT_SETTLING_SECONDS", "0")


def test_every_page_with_commands_is_followed_by_a_test() -> None:
    for page, test in FOLLOWED_ELSEWHERE.items():
        assert page in PAGES
        assert page in Path(__file__).with_name(test).read_text()


def test_triggering_and_looking_works_as_the_page_says(learnt: tuple[Place, str]) -> None:
    _, said = learnt
    assert "routing: promoted, proven better" in said
    assert "of 100 new traces and annotations" in said


@pytest.mark.parametrize("page", sorted({*PAGES} - {FIRST, BACKUP, *FOLLOWED_ELSEWHERE}))
def test_the_commands_of_a_page_run(place: Place, page: str) -> None:
    assert place.follow(page)


def test_a_backup_brings_back_what_serves(place: Place) -> None:
    version = re.findall(r"\d{8}T\d{6}Z-[0-9a-f]{8}", autoopt("versions", place.tenant, "routing"))[0]
    said = place.follow(BACKUP)
    assert re.search(rf"{version}\s+active\s+promoted", said)
    assert f"serves {version}" in said


def test_without_dagsters_storage_programs_serve_and_all_is_due_again(place: Place) -> None:
    before = autoopt("history", place.tenant, "routing")
    shutil.rmtree(place.home / ".autoopt" / "dagster")
    assert autoopt("history", place.tenant, "routing") == before
    said = autoopt("why", place.tenant, "routing")
    assert "due: 400 new traces" in said
    assert "never optimized" not in said
    assert re.search(r"last  promoted, .* of which no report is left", said)
    assert "moved by run" in said


def test_without_programs_a_module_waits_until_somebody_forces_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(place.home / ".autoopt" / "artifacts")
    monkeypatch.setenv("AUTOOPT_SCHEDULE_JITTER", "0")
    autoopt("config", "set", place.tenant, "optimization_interval_seconds=1")
    said = autoopt("why", place.tenant, "routing")
    assert "too_few_traces" in said
    assert "serves  baseline" in said


def test_what_troubleshooting_shows_is_what_the_commands_say(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = place.tenant
    monkeypatch.setenv("AUTOOPT_SCHEDULE_JITTER", "0")
    said = []

    def why(*settings: str, of: str = tenant, status: int = 0) -> None:
        if settings:
            autoopt("config", "set", of, *settings)
        said.append(autoopt("why", of, "routing", status=status))

    why()
    said.append(autoopt("rollouts"))
    said.append(autoopt("doctor", status=2))
    why("modules.routing.mode=off")
    why("modules.routing.mode=auto", "optimization_interval_seconds=1")
    why('quiet_hours=[{"start": "00:00", "end": "24:00"}]')
    why("quiet_hours=[]", "daily_budget.max_lm_calls=100")
    autoopt("config", "set", tenant, "daily_budget={}", "optimization_interval_seconds=3600", "budget.max_lm_calls=50")
    force = ("trigger", "--tenant-id", tenant, "--module", "routing", "--force")
    said.append(autoopt(*force, status=2))
    why()
    why("budget={}", 'lm={"model": "openai/gpt-4o-mini", "api_key_env": "HOOLI_API_KEY"}')
    said.append(autoopt(*force, status=2))
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", "http://127.0.0.1:9")
    said.append(autoopt("simulate", tenant, status=2))
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", place.phoenix)
    new = f"{tenant}-new"
    autoopt("tenants", "add", new)
    why(of=new)
    autoopt("config", "set", new, 'agents=[{"name": "a"}, {"name": "b"}]')
    said.append(autoopt("why", new, "routing").replace(new, tenant))

    heard = _without_numbers("\n".join(said)).replace(tenant, "hooli")
    shown = [line for text in blocks(DOCS / "troubleshooting.md", "") for line in text.splitlines()]
    assert len(shown) > 10
    for line in shown:
        assert _without_numbers(line) in heard


def _without_numbers(text: str) -> str:
    return re.sub(r"(?<![\w.])(?:[\d.:-]*\d|(?:\d+[dhms])+)(?![\w.])", "N", text)


def test_a_version_that_is_not_there_is_told_and_can_be_gone_back_from(place: Place) -> None:
    active = VersionStore(ObjectStore(str(place.home / ".autoopt" / "artifacts")), place.tenant, "routing").active()
    assert active
    shutil.rmtree(place.home / ".autoopt" / "artifacts" / place.tenant / "routing" / "versions" / active.version)
    assert f"the manifest of {active.version} is missing" in " ".join(autoopt("status", place.tenant).split())
    assert "-> baseline" in autoopt("rollback", place.tenant, "routing")


def test_the_instance_of_the_install_page_is_one_that_dagster_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", "postgresql://dagster:secret@db.internal/dagster")
    files = {
        name: yaml.safe_load(text) for _, _, name, text in BLOCK.findall((DOCS / "install.md").read_text()) if name
    }
    whole = yaml.safe_load((PROJECT / "dagster.yaml").read_text()) | files["dagster.yaml"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(whole))
    read, _ = dagster_instance_config(str(tmp_path))
    assert read["storage"]["custom"]["config"] == {"postgres_url": {"env": "DAGSTER_POSTGRES_URL"}}
    (server,) = [each["grpc_server"] for each in files["workspace.yaml"]["load_from"]]
    assert f"-p {server['port']}" in (DOCS / "install.md").read_text()


def test_the_settings_of_the_install_page_are_those_that_a_new_deployment_gets() -> None:
    (shown,) = (text for _, _, name, text in BLOCK.findall((DOCS / "install.md").read_text()) if name == "autoopt.env")
    made = (PROJECT / "autoopt_pipeline" / "instance_template" / "autoopt.env").read_text()
    assignment = re.compile(r"^#?([A-Z_]+)=(.*)$", re.MULTILINE)
    assert dict(assignment.findall(shown)) | {"DAGSTER_HOME": "FOLDER"} == dict(assignment.findall(made))


def test_supported_versions_are_those_of_the_packages_and_the_tests() -> None:
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|", _section("install.md", "Supported versions"), re.MULTILINE))
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]) == SpecifierSet(">=3.11,<3.14")
    assert rows["Python"] == "3.11, 3.12, 3.13"
    ranges = {
        requirement.name: requirement.specifier
        for text in (*project["dependencies"], *project["optional-dependencies"]["pipeline"])
        if (requirement := Requirement(text))
    }
    assert {*rows["Dagster"].split(" to ")} <= {*ranges["dagster"].filter(["1.13.26", "1.13.27", "1.13.29", "1.14.0"])}
    assert rows["Dagster"].startswith(version("dagster"))
    assert rows["DSPy"] == version("dspy")
    assert f"Phoenix {rows['Phoenix']}" == SUPPORTED_PHOENIX
    assert rows["Phoenix"].startswith(".".join(map(str, OLDEST_PHOENIX)))
    for name in re.findall(r"`(?:chaos/)?(test_\w+)`", _section("install.md", "Supported versions")):
        assert [*(PROJECT / "tests").rglob(f"{name}.py")], name


def _section(page: str, heading: str) -> str:
    return (DOCS / page).read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_settings_that_pages_name_exist() -> None:
    known = {f"AUTOOPT_{name.upper()}" for name in Settings.model_fields}
    for page in DOCUMENTS:
        named = set(re.findall(r"AUTOOPT_[A-Z_]*[A-Z]\b", page.read_text()))
        assert named <= known | {"AUTOOPT_PHOENIX_COMMAND"}, page.name


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index


def test_links_lead_somewhere() -> None:
    for page in DOCUMENTS:
        for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", _without_code(page.read_text())):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                assert anchor in _anchors(target.read_text()), f"{page.name}: {link}"


def _without_code(text: str) -> str:
    return BLOCK.sub("", text)


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", _without_code(text), re.MULTILINE)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower() for heading in headings)
    return {
        "".join(c for c in heading if c in "-_ " or unicodedata.category(c)[0] in "LN").replace(" ", "-")
        for heading in plain
    }
