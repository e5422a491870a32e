"""Modules that a YAML file describes, where Dagster and the command load them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.urgency_module import URGENCY

COMMANDS = Path(sys.executable).parent


def run(command: list[str], home: Path, modules: str) -> subprocess.CompletedProcess[str]:
    (home / "modules.yaml").write_text(modules)
    env = {**os.environ, "DAGSTER_HOME": str(home), "AUTOOPT_MODULES_FILE": "modules.yaml", "COLUMNS": "200"}
    return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)


def test_a_declared_module_is_an_asset_and_can_be_configured(home: Path) -> None:
    code = """
import sys
from autoopt_pipeline.definitions import defs
from autoopt_pipeline.tenants.config import RoutingConfigUnified, check_modules
print("urgency" in {spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()})
print("urgency" in RoutingConfigUnified(tenant_id="a").modules)
check_modules(RoutingConfigUnified(tenant_id="a", modules={"urgency": {}}))
print("dspy" in sys.modules)
"""
    done = run([sys.executable, "-c", code], home, URGENCY)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\nFalse\nFalse\n"


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (URGENCY.replace("labels:", "lables:"), "modules.urgency: unknown field 'lables'; did you mean 'labels'?"),
        (URGENCY.replace("  urgency:\n", "  routing:\n"), "module 'routing' exists already"),
        (URGENCY.replace("  urgency:\n", "  Urgency!:\n"), "'Urgency!' is no module name"),
        (URGENCY.replace("  urgency:\n", "  type:\n"), "Dagster keeps the name 'type' to itself"),
    ],
)
def test_a_bad_file_is_one_line_of_status_and_the_first_that_dagster_says(home: Path, modules: str, words: str) -> None:
    done = run([str(COMMANDS / "autoopt"), "status"], home, modules)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: AUTOOPT_MODULES_FILE {home / 'modules.yaml'}: ")
    assert words in line
    assert " -> " in line
    command = [str(COMMANDS / "dagster"), "definitions", "validate", "-m", "autoopt_pipeline.definitions"]
    validated = run(command, home, modules)
    assert validated.returncode == 1
    said = [text for text in validated.stdout.splitlines() + validated.stderr.splitlines() if words in text]
    assert [text.partition(": ")[2] for text in said] == [line.removeprefix("error: ")]
