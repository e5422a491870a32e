"""Modules of other packages, found over a real entry point in a fresh process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
from autoopt_pipeline.contract import SpanContract
from autoopt_pipeline.modules.spec import Label, ModuleSpec

URGENCY = ModuleSpec(
    name={name!r},
    description="How soon somebody waits for the answer.",
    contract=SpanContract(
        span_name="support.triage",
        inputs={{"query": ("triage.text",)}},
        required=("query",),
        answer=("triage.urgency",),
        confidence=("triage.confidence",),
        annotation="urgency_annotation",
    ),
    output_field="urgency",
    labels=(Label("now"), Label("today"), Label("later")),
    program="urgency_plugin:build_program",
    scheduled_by_default=False,
)
"""


def with_plugin(folder: Path, code: str, module: str) -> subprocess.CompletedProcess[str]:
    (folder / "urgency_plugin.py").write_text(module)
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
print(sorted(spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()))
print(list(RoutingConfigUnified(tenant_id="a").modules))
check_modules(RoutingConfigUnified(tenant_id="a", modules={"urgency": {}}))
"""
    done = with_plugin(tmp_path, code, PLUGIN.format(name="urgency"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['modality', 'routing', 'urgency']\n['modality', 'routing']\n"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (PLUGIN.format(name="routing"), "'routing' exists already"),
        (PLUGIN.format(name="../urgency"), "is no module name"),
        ("URGENCY = 'urgency'", "is no ModuleSpec"),
        ("import nothing_of_that_name", "cannot be loaded: No module named 'nothing_of_that_name'"),
    ],
)
def test_a_bad_plugin_is_named(tmp_path: Path, module: str, words: str) -> None:
    code = """
from autoopt_pipeline.errors import UnknownModule
from autoopt_pipeline.modules.registry import modules
try:
    modules()
except UnknownModule as e:
    print(e)
"""
    done = with_plugin(tmp_path, code, module)
    assert words in done.stdout
    assert "urgency_plugin" in done.stdout
