"""A wheel, installed where no checkout is: it says what is missing, makes a deployment, and runs the loop."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from autoopt_pipeline.devtools.processes import free_port
from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, sample_config
from autoopt_pipeline.devtools.stack import _phoenix_command
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix
from tests.support.project import PROJECT
from tests.support.stack_processes import servers

INSTANCE = PROJECT / "autoopt_pipeline" / "instance_template"


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and a folder outside of any checkout."""

    environment: Path
    folder: Path

    def command(self, *arguments: str | Path, home: Path | None = None, **env: str) -> subprocess.Popen[str]:
        return self.start([self.environment / "bin" / "autoopt", *arguments], env, home=home)

    def start(
        self, command: Sequence[str | Path], env: Mapping[str, str], *, home: Path | None = None
    ) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOOPT_", "PYTHON"))}
        return subprocess.Popen(
            command,
            cwd=home or self.folder,
            env={**inherited, "COLUMNS": "200", "PATH": f"{self.environment / 'bin'}:{os.environ['PATH']}", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def autoopt(
        self, *arguments: str | Path, status: int = 0, home: Path | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        process = self.command(*arguments, home=home, **(env or {}))
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, out + err
        return err or out


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, folder: Path) -> Installed:
    """As pip does, into an environment with nothing in it."""
    environment, outside = folder / "environment", folder / "outside"
    venv.create(environment, symlinks=True)
    outside.mkdir()
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return Installed(environment, outside)


@pytest.fixture
def base(wheel: Path, tmp_path: Path) -> Installed:
    return install(wheel, tmp_path)


@pytest.fixture(scope="module")
def complete(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With all that the extra `pipeline` names, which lies in the tests' own environment."""
    installed = install(wheel, tmp_path_factory.mktemp("complete"))
    paths = sysconfig.get_paths(vars={"base": str(installed.environment), "platbase": str(installed.environment)})
    import typer

    (Path(paths["purelib"]) / "packages.pth").write_text(f"{Path(typer.__file__).parents[1]}\n")
    python = installed.environment / "bin" / "python"
    for script in entry_points(group="console_scripts"):
        if script.name.startswith("dagster"):
            file = python.with_name(script.name)
            file.write_text(f"#!{python}\nfrom {script.module} import {script.attr}\n{script.attr}()\n")
            file.chmod(0o755)
    where = "import autoopt_pipeline; print(autoopt_pipeline.__file__)"
    found = subprocess.run(
        [python, "-c", where],
        cwd=installed.folder,
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert found.stdout.startswith(str(installed.environment))  # and not the checkout's
    return installed


def test_it_holds_the_files_that_are_no_code(wheel: Path) -> None:
    held = {name.removeprefix("autoopt_pipeline/") for name in zipfile.ZipFile(wheel).namelist()}
    code = PROJECT / "autoopt_pipeline"
    files = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    assert {file for file in files if "__pycache__" not in file} <= held
    assert not [name for name in held if name.startswith(("tests/", "bench/"))]


@pytest.mark.parametrize("name", ["dagster.yaml", "workspace.yaml"])
def test_the_checkouts_instance_is_the_one_that_is_shipped(name: str) -> None:
    assert (PROJECT / name).read_text() == (INSTANCE / name).read_text()


def test_the_base_install_says_in_one_line_what_its_command_needs(base: Installed) -> None:
    for command in ([], ["--help"], ["status", "acme"]):
        assert base.autoopt(*command, status=2) == (
            "error: the autoopt command needs the pipeline, and dagster is not installed "
            "-> pip install 'autoopt-pipeline[pipeline]'\n"
        )


def test_what_the_readme_says_to_type_runs_outside_of_a_checkout(complete: Installed, phoenix: Phoenix) -> None:
    said = complete.autoopt("init", "new home")
    assert "dagster.yaml, workspace.yaml, autoopt.env" in said
    home = complete.folder / "new home"
    assert f"\nDAGSTER_HOME='{home}'\n" in (home / "autoopt.env").read_text()
    assert (home / "autoopt.env").stat().st_mode & 0o777 == 0o600
    here = {"DAGSTER_HOME": str(home), "AUTOOPT_PHOENIX_ENDPOINT": phoenix.endpoint, "AUTOOPT_SETTLING_SECONDS": "0"}
    blocks = re.findall(r"```sh\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    done = complete.start(["bash", "-c", "\n".join(["set -e", *blocks, "autoopt versions hooli routing"])], here)
    out, err = done.communicate(timeout=600)
    assert done.returncode == 0, out + err
    assert "600 new traces, 100 needed" in out
    assert "routing: promoted" in out, out
    assert re.search(r"^ *\S+ +active +promoted ", out, re.MULTILINE), out
    assert {path.name for path in home.iterdir()} == {"dagster.yaml", "workspace.yaml", "autoopt.env", ".autoopt"}
    assert [path.name for path in complete.folder.iterdir()] == ["new home"]


def test_up_runs_on_the_folder_that_init_made(complete: Installed, tmp_path: Path) -> None:
    home = tmp_path / "home"
    complete.autoopt("init", home)
    # `autoopt demo` plays the traffic of all sample tenants and waits for their runs. Here one begins, which has too
    # little traffic for any; the others were added before.
    known = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")
    for tenant in SAMPLE_TENANTS:
        if tenant.tenant_id != "newcomer":
            write_config(known, sample_config(tenant).model_copy(update={"enable_auto_optimization": False}))
    ports = {name: str(free_port()) for name in ("--phoenix-port", "--dagster-port", "--dashboard-port")}
    command = ["up", *(word for pair in ports.items() for word in pair)]
    up = complete.command(*command, home=home, AUTOOPT_PHOENIX_COMMAND=_phoenix_command())
    said = ""
    assert up.stdout is not None
    for line in up.stdout:
        said += line
        if "Ctrl-C stops all of it" in line:
            break
    up.send_signal(signal.SIGINT)
    out, err = up.communicate(timeout=60)
    assert up.returncode == 0, said + out + err
    assert f"export DAGSTER_HOME={home}" in said
    assert "tenant newcomer: 40 traces" in said
    assert f"{len(SAMPLE_TENANTS) - 1} tenants from earlier" in said
    assert not servers(home)


def test_up_says_what_it_lacks(complete: Installed, tmp_path: Path) -> None:
    assert f"{tmp_path} has no dagster.yaml -> make a folder with 'autoopt init FOLDER'" in complete.autoopt(
        "up", home=tmp_path, status=2
    )
    assert list(tmp_path.iterdir()) == []
    complete.autoopt("init", tmp_path)
    path = f"{complete.environment / 'bin'}:/usr/bin:/bin"
    ports = [word for name in ("phoenix", "dagster", "dashboard") for word in (f"--{name}-port", str(free_port()))]
    lacking = complete.autoopt("up", *ports, home=tmp_path, status=2, env={"PATH": path})
    assert "the Phoenix server is not installed" in lacking
    assert "set AUTOOPT_PHOENIX_COMMAND" in lacking
    file = tmp_path / "dagster.yaml"
    file.write_text("storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}")
    elsewhere = complete.autoopt("up", home=tmp_path, status=2)
    assert f"{file} keeps Dagster's data elsewhere" in elsewhere
