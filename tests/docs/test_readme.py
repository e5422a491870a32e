"""The README is true: its commands run, its targets exist."""

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


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE)) <= targets


def test_it_explains_every_decision_and_verdict() -> None:
    for word in [*Reason, *Verdict]:
        assert f"`{word.value}`" in README


def test_the_annotations_spans_and_attributes_of_the_contract_are_documented() -> None:
    documented = README + (PROJECT / "docs" / "modules.md").read_text()
    for name, spec in modules().items():
        assert f"`{name}`" in documented
        assert f"`{spec.contract.annotation}`" in documented
        assert f"`{spec.contract.span_name}`" in documented
        for paths in spec.contract.answers.values():
            assert f"`{paths[0]}`" in documented
