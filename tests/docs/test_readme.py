"""The README is true: its commands run, its targets exist; so is what it leaves to other documents."""

import os
import re
import subprocess
import sys
from pathlib import Path

from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.scheduling.conditions import Reason
from autoopt_pipeline.traces.client import Phoenix
from tests.support.project import PROJECT

README = (PROJECT / "README.md").read_text()
DOCS = PROJECT / "docs"


def test_its_commands_run(home: Path, phoenix: Phoenix) -> None:
    script = "set -e\n" + "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUTOOPT_PHOENIX_ENDPOINT": phoenix.endpoint,
        "AUTOOPT_SETTLING_SECONDS": "0",
        "COLUMNS": "200",
    }
    done = subprocess.run(["bash", "-c", script], cwd=home, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "promoted" in done.stdout
    assert "400 new traces, 100 needed" in done.stdout


def test_the_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = README + (PROJECT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", named, re.MULTILINE)) <= targets


def test_every_decision_and_every_verdict_is_explained() -> None:
    for page, words in (("trigger-and-status.md", Reason), ("promotions.md", Verdict)):
        explained = re.findall(r"^\| `(\w+)` \| \w", (DOCS / page).read_text(), re.MULTILINE)
        assert {word.value for word in words} <= {*explained}


def test_the_annotations_spans_and_attributes_of_the_contract_are_documented() -> None:
    documented = (DOCS / "spans.md").read_text() + (DOCS / "modules.md").read_text()
    for name, spec in modules().items():
        assert f"`{name}`" in documented
        assert f"`{spec.contract.annotation}`" in documented
        assert f"`{spec.contract.span_name}`" in documented
        for paths in spec.contract.answers.values():
            assert f"`{paths[0]}`" in documented
