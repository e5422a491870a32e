"""docs/security.md names tests that exist, and the lock files are what it says."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.project import PROJECT


def test_every_test_that_the_threat_model_names_exists() -> None:
    document = (PROJECT / "docs" / "security.md").read_text()
    named = re.findall(r"`(test_\w+)::(test_\w+)`", document)
    assert len(named) > 30
    files = {path.stem: path.read_text() for path in (PROJECT / "tests").rglob("test_*.py")}
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in files.get(file, "")]
    assert missing == []


@pytest.mark.parametrize("lock", sorted((PROJECT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_lock_files_hold_exact_versions_and_lead_nowhere_else(lock: Path) -> None:
    for line in lock.read_text().splitlines():
        requirement = Requirement(line)  # refuses options, such as the address of an index
        assert requirement.url is None
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), line


def test_the_linter_looks_for_what_is_insecure() -> None:
    ruff = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in ruff["select"]
    assert all(
        path == "tests/**" for path, rules in ruff["per-file-ignores"].items() if any(r[0] == "S" for r in rules)
    )
