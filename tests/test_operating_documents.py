"""The documents on configuring, tenants and spans are true: their commands run, and their tables are the models'."""

import re
import shlex
from pathlib import Path

import pytest

from autoopt_pipeline.traces.phoenix import Phoenix
from tests.config_reference import DOCUMENT, with_tables
from tests.follow import environment, follow
from tests.test_cli import AGENTS, autoopt

PROJECT = Path(__file__).parents[1]
DOCS = PROJECT / "docs"
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_commands(name: str, shown: str, tenant: str) -> str:
    """What the document's `autoopt` commands print, each as it stands but for the tenant that it shows."""
    said = ""
    for kind, _, text in BLOCK.findall((DOCS / name).read_text()):
        if kind == "sh":
            for line in text.splitlines():
                command = shlex.split(re.sub(rf"\b{shown}\b", tenant, line), comments=True)
                assert command[0] == "autoopt"
                said += autoopt(*command[1:])
    return said


def test_every_field_and_variable_is_documented_as_it_is() -> None:
    text = DOCUMENT.read_text()
    assert with_tables(text) == text, "run: python -m tests.config_reference"


def test_the_commands_on_configuring_run(home: Path) -> None:
    autoopt("tenants", "add", "hooli", *AGENTS)
    said = run_commands("configure.md", "hooli", "hooli")
    assert "min_samples_for_optimization: 100 -> 200" in said
    assert "min_samples_for_optimization: 200 -> 100" in said
    assert "hooli would be saved, with 0 fields changed" in said


def test_the_commands_on_adding_a_tenant_run(
    home: Path, phoenix: Phoenix, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    said = run_commands("add-a-tenant.md", "vandelay", tenant)
    assert "right answers" in said
    assert "new traces, 100 needed" in said


def stored(tenant: str) -> str:
    """A shell command that succeeds once Phoenix has stored the document's spans."""
    return f"autoopt traces stats {tenant} 2>/dev/null | grep -q 'llm.router 3'"


def test_spans_of_an_own_layout_are_read_as_the_document_says(home: Path, phoenix: Phoenix, tenant: str) -> None:
    wait = f"for _ in {{1..60}}; do {stored(tenant)} && break; sleep 0.5; done"
    blocks = [
        (kind, file, re.sub(r"^sleep .*", lambda line: f"{line[0]}\n{wait}", text.replace("wonka", tenant), flags=re.M))
        for kind, file, text in BLOCK.findall((DOCS / "use-your-own-span-layout.md").read_text())
    ]
    env = environment(home / "installed", AUTOOPT_PHOENIX_ENDPOINT=phoenix.endpoint)
    before, after = follow(blocks, home, env).split("Successfully installed")
    assert "spans that no module reads: llm.router 3" in before
    assert re.search(r"agent_choice +3 +2 ", after)
    assert "query: shorten it" in after
    assert "not usable: agent is not one of the current labels" in after
    assert "no module reads" not in after
