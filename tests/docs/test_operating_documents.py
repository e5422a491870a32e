"""The documents on configuring, tenants and spans are true: their commands run, and their tables are the models'."""

import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import AGENTS, autoopt
from tests.support.config_reference import DOCUMENT, with_tables
from tests.support.followed_documents import environment, follow
from tests.support.project import PROJECT

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
    assert with_tables(text) == text, "run: python -m tests.support.config_reference"


def test_the_commands_on_configuring_run(home: Path) -> None:
    autoopt("tenants", "add", "hooli", *AGENTS)
    said = run_commands("configuration.md", "hooli", "hooli")
    assert "optimization_interval_seconds: 1h -> 2h" in said
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


OWN_SPANS, DSPY_SPANS = re.split(
    r"^(?=## DSPy)", (DOCS / "use-your-own-span-layout.md").read_text(), flags=re.MULTILINE
)


def test_spans_of_an_own_layout_are_read_as_the_document_says(home: Path, phoenix: Phoenix, tenant: str) -> None:
    wait = f"for _ in {{1..60}}; do {stored(tenant)} && break; sleep 0.5; done"
    blocks = [
        (kind, file, re.sub(r"^sleep .*", lambda line: f"{line[0]}\n{wait}", text.replace("wonka", tenant), flags=re.M))
        for kind, file, text in BLOCK.findall(OWN_SPANS)
    ]
    env = environment(home / "installed", AUTOOPT_PHOENIX_ENDPOINT=phoenix.endpoint)
    before, after = follow(blocks, home, env).split("Successfully installed")
    assert "spans that no module reads: llm.router 3" in before
    assert re.search(r"agent_choice +3 +2 ", after)
    assert "query: shorten it" in after
    assert "not usable: agent is not one of the current labels" in after
    assert "no module reads" not in after


def test_spans_that_the_instrumentation_of_dspy_leaves_are_read_as_the_document_says(
    home: Path, phoenix: Phoenix, tenant: str
) -> None:
    there = f"autoopt traces stats {tenant} 2>/dev/null | grep -qE 'route +2'"
    wait = f"for _ in {{1..20}}; do {there} && break; sleep 0.5; done"
    blocks = [
        (kind, file, re.sub(r"^sleep .*", wait, text.replace("veruca", tenant), flags=re.MULTILINE))
        for kind, file, text in BLOCK.findall(DSPY_SPANS)
    ]
    said = follow(blocks, home, environment(home / "installed", AUTOOPT_PHOENIX_ENDPOINT=phoenix.endpoint))
    _, shown = said.split("shorten it -> summary_agent")
    decisions = [" ".join(each.split()) for each in shown.split("trace ")[1:]]
    assert ["question: shorten it" in each for each in decisions] == [True, False]
    assert "answered: agent summary_agent right: summary_agent (human, drawn at random)" in decisions[0]
    assert "answered: agent search_agent right: search_agent (human, drawn at random)" in decisions[1]


SPANS_OF_DSPY = """
import asyncio
import dspy
from dspy.utils.dummies import DummyLM
from openinference.instrumentation.dspy import DSPyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
DSPyInstrumentor().instrument(tracer_provider=provider)

class RouteSig(dspy.Signature):
    question: str = dspy.InputField()
    agent: str = dspy.OutputField()

class Router(dspy.Module):
    def __init__(self):
        super().__init__()
        self.decide = dspy.ChainOfThought(RouteSig)

    def forward(self, question):
        return self.decide(question=question)

    async def aforward(self, question):
        return await self.decide.acall(question=question)

dspy.configure(lm=DummyLM([{"agent": "a", "reasoning": "r"}] * 4))
dspy.Predict(RouteSig)(question="q")
asyncio.run(dspy.Predict(RouteSig).acall(question="q"))
Router()(question="q")
asyncio.run(Router().acall(question="q"))
for span in exporter.get_finished_spans():
    print(span.name, span.attributes["input.value"] == '{"question": "q"}', "agent" in span.attributes["output.value"])
"""


def test_spans_of_dspy_are_called_as_the_document_says() -> None:
    done = subprocess.run([sys.executable, "-c", SPANS_OF_DSPY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    read = Counter(line.split()[0] for line in done.stdout.splitlines() if line.endswith(" True True"))
    assert read["Predict(RouteSig).forward"] == 2
    named = set(re.findall(r"`([A-Za-z()]+\.a?forward)`", DSPY_SPANS))
    assert named == {
        "Predict(RouteSig).forward",
        "Predict(StringSignature).forward",
        "Router.forward",
        "Router.aforward",
    }
    assert named <= read.keys()
