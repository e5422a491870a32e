"""Modules of other packages, found over a real entry point in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
from autoopt_pipeline.span_contract import SpanContract
from autoopt_pipeline.modules.spec import Label, ModuleSpec

URGENCY = ModuleSpec(
    name={name!r},
    description="How soon somebody waits for the answer.",
    contract=SpanContract(
        span_name="support.triage",
        inputs={{"query": ("triage.text",)}},
        required=("query",),
        answers={{"urgency": ("triage.urgency",)}},
        confidence=("triage.confidence",),
        annotation="urgency_annotation",
    ),
    outputs=("urgency",),
    labels=(Label("now"), Label("today"), Label("later")),
    program="urgency_parts:build_program",
    examples="urgency_parts:build_examples",
    grading="urgency_parts:GRADING",
    scheduled_by_default=False,
)
"""


OWN_PARTS = """
from collections import Counter
from typing import Literal

import dspy
from autoopt_pipeline.modules.spec import Example, ExampleSet, Grading, Provenance

HOURS = {"now": 1, "today": 8, "later": 40}


class Triage(dspy.Module):
    def __init__(self, signature):
        super().__init__()
        self.decide = dspy.ChainOfThought(signature)

    def forward(self, query):
        return self.decide(query=query)


def build_program(spec, labels):
    class Urgency(dspy.Signature):
        query: str = dspy.InputField()
        urgency: Literal[tuple(label.name for label in labels)] = dspy.OutputField()
        confidence: float = dspy.OutputField()

    return Triage(Urgency.with_instructions(spec.description))


def build_examples(spec, labels, decisions):
    \"\"\"The right answer is how long the sender waited in the end; nobody has to review anything.\"\"\"
    examples, unusable = [], Counter()
    for decision in decisions:
        hours = decision.attributes.get("triage.hours")
        if hours is None:
            unusable["nobody waited"] += 1
            continue
        right = min(HOURS, key=lambda name: abs(HOURS[name] - hours))
        inputs = {"query": decision.attributes["triage.text"]}
        where = decision.time, decision.span_id, decision.trace_id
        values = {"urgency": right}
        examples.append(Example(inputs, values, spec.label(values), Provenance.HUMAN, True, *where))
    return ExampleSet(tuple(examples), dict(unusable))


def score(spec, right, given):
    order = list(HOURS)
    return 1 - abs(order.index(right["urgency"]) - order.index(given["urgency"])) / 2


def label(spec, values):
    return values["urgency"].upper()


GRADING = Grading(score, label)
"""


def with_plugin(folder: Path, code: str, module: str, parts: str = "") -> subprocess.CompletedProcess[str]:
    (folder / "urgency_plugin.py").write_text(module)
    (folder / "urgency_parts.py").write_text(parts)
    info = folder / "urgency_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: urgency-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[autoopt_pipeline.modules]\nurgency = urgency_plugin:URGENCY\n")
    env = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_a_plugged_in_module_is_an_asset_and_can_be_configured(tmp_path: Path) -> None:
    code = """
from autoopt_pipeline.definitions import defs
from autoopt_pipeline.tenants.config import RoutingConfigUnified, check_modules
print("urgency" in {spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()})
print("urgency" in RoutingConfigUnified(tenant_id="a").modules)
check_modules(RoutingConfigUnified(tenant_id="a", modules={"urgency": {}}))
"""
    done = with_plugin(tmp_path, code, PLUGIN.format(name="urgency"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\nFalse\n"


def test_a_plug_in_learns_with_its_own_program_examples_and_grading(tmp_path: Path) -> None:
    code = f"""
import random
import sys
from datetime import UTC, datetime, timedelta

from autoopt_pipeline.modules.catalog import get_module
spec = get_module("urgency")
assert "dspy" not in sys.modules

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.serialization import deserialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.tenants.config import LMSettings, RoutingConfigUnified

rng, end = random.Random(1), datetime(2026, 1, 2, tzinfo=UTC)
said = {{"1": "is broken for", "9": "stutters for", "70": "could be nicer for"}}
decisions = []
for number in range(500):
    hours = rng.choice(list(said))
    words = [rng.choice("abcdefghijklmnop") * rng.randint(3, 9) for _ in range(6)]
    attributes = {{"triage.text": f"{{' '.join(words)}} {{said[hours]}} me"}}
    if number % 10:
        attributes["triage.hours"] = int(hours)
    span_id = f"{{number:016x}}"
    decisions.append(LoggedDecision(span_id, span_id * 2, end - timedelta(minutes=number + 1), False, attributes))
artifacts = VersionStore(ObjectStore({str(tmp_path / "artifacts")!r}), "acme", "urgency")
config = RoutingConfigUnified(tenant_id="acme", local_router=False)  # so that its own program wins
job = OptimizationJob(spec, config, decisions, end - timedelta(days=1), end, "run")
report = optimize(job, metered_lm(LMSettings(model="stand-in"), Meter(6000, 10**9)), artifacts)
program = deserialize(spec, spec.labels, artifacts.load(artifacts.active().version))
print(report.verdict.value)
print(report.unusable, sorted(report.balance))
print(type(program).__name__, sorted({{row.case.candidate.score for row in report.compared}}))
"""
    done = with_plugin(tmp_path, code, PLUGIN.format(name="urgency"), OWN_PARTS)
    assert done.returncode == 0, done.stderr
    verdict, examples, program = done.stdout.splitlines()
    assert verdict == "promoted"
    assert examples == "{'nobody waited': 50} ['LATER', 'NOW', 'TODAY']"
    assert program.startswith("Triage [")
    assert set(json.loads(program.removeprefix("Triage "))) <= {0.0, 0.5, 1.0}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (PLUGIN.format(name="routing"), "'routing' exists already"),
        (PLUGIN.format(name="../urgency"), "is no module name"),
        (PLUGIN.format(name="config"), "Dagster keeps the name 'config' to itself"),
        ("URGENCY = 'urgency'", "is no ModuleSpec"),
        ("import nothing_of_that_name", "cannot be loaded: No module named 'nothing_of_that_name'"),
    ],
)
def test_a_bad_plugin_is_named(tmp_path: Path, module: str, words: str) -> None:
    code = """
from autoopt_pipeline.errors import UnknownModule
from autoopt_pipeline.modules.catalog import modules
try:
    modules()
except UnknownModule as e:
    print(e)
"""
    done = with_plugin(tmp_path, code, module)
    assert words in done.stdout
    assert "urgency_plugin" in done.stdout
