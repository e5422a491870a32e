"""`autoopt models`: what lists the language models in use, and replaces one that is retired."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.doctor.versions import active_versions
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.named_model import naming
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.serialization import serialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, read_config
from tests.support.command_line import AGENTS, autoopt
from tests.support.stored_programs import LABELS, store

OLD, NEW, LARGE = "openai/gpt-4o-mini", "openai/gpt-4.1-mini", "openai/gpt-4o"
PRICED = json.dumps({"model": OLD, "api_key_env": "ACME_API_KEY", "price": {"input": 1, "output": 2}})


@pytest.fixture
def version(home: Path) -> str:
    """The active version of acme, which names a candidate model. globex has a version of its own model."""
    for tenant in ("acme", "globex"):
        autoopt("tenants", "add", tenant, *AGENTS)
    autoopt("config", "set", "acme", f'lm={{"model": "{LARGE}"}}', f"candidate_lms=[{PRICED}]")
    autoopt("config", "set", "globex", f"lm.model={OLD}", f"teacher_lm.model={LARGE}")
    routing = get_module("routing")
    made = {}
    for tenant, program in (
        ("acme", naming(routing.build_program(LABELS), OLD)),
        ("globex", routing.build_program(LABELS)),
    ):
        stored = serialize(routing, tenant, LABELS, program)
        changes = {"lm": OLD, "named_lms": stored.named_lms, "stand_in": False}
        artifacts = VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), tenant, "routing")
        made[tenant] = store(artifacts, stored, active=True, changes=changes)
    return made["acme"]


def config(home: Path, tenant: str) -> RoutingConfigUnified:
    return read_config(open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"), tenant)[0]


def listed(tenant: str) -> dict[str, dict[str, object]]:
    rows = json.loads(autoopt("models", "--tenant", tenant, "--json"))["modules"]
    return {row["module"]: row for row in rows}


def test_it_lists_what_each_version_was_proven_with_and_what_its_tenant_has(version: str) -> None:
    assert listed("acme")["routing"] == {
        "tenant": "acme",
        "module": "routing",
        "version": version,
        "asked": OLD,
        "named": [OLD],
        "own": LARGE,
        "candidates": [OLD],
        "retired": None,
        "error": None,
    }
    assert listed("acme")["modality"]["version"] is None
    assert listed("globex")["routing"]["named"] is None
    table = autoopt("models")
    assert "acme" in table
    assert "globex" in table
    assert "did you mean 'acme'?" in autoopt("models", "--tenant", "acmee", status=2)


def test_a_replaced_model_makes_the_modules_due_that_ask_it(home: Path, version: str) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    told = autoopt("models", "replace", OLD, NEW, "--yes")
    acme, globex = config(home, "acme"), config(home, "globex")
    (candidate,) = acme.candidate_lms
    assert (candidate.model, candidate.api_key_env, candidate.price) == (NEW, "ACME_API_KEY", None)
    assert globex.lm
    assert globex.lm.model == NEW
    for tenant in (acme, globex):
        assert all(
            (tenant.retrain_after(module) or datetime.min.replace(tzinfo=UTC)) >= began for module in tenant.modules
        )
    assert "acme: configuration version 3, and its modules are due" in told
    assert f"acme/routing: {version} asks {OLD} until another version is active" in told
    assert listed("acme")["routing"]["retired"] == [OLD]
    assert f"{version} asks {OLD}, which the tenant no longer has" in autoopt("models")
    assert f"lm.model: {OLD} -> {NEW}" in autoopt("config", "diff", "globex").replace('"', "")


def test_a_replaced_teacher_makes_nothing_due(home: Path, version: str) -> None:
    told = autoopt("models", "replace", LARGE, NEW, "--tenant", "globex", "--yes")
    globex, acme = config(home, "globex"), config(home, "acme")
    assert globex.teacher_lm
    assert globex.teacher_lm.model == NEW
    assert "globex: configuration version 3, and no module is due" in told
    assert not any(globex.retrain_after(module) for module in globex.modules)
    assert acme.lm
    assert acme.lm.model == LARGE  # another tenant's


def test_a_candidate_that_becomes_the_tenants_own_model_is_no_candidate_any_more(home: Path, version: str) -> None:
    autoopt("models", "replace", LARGE, OLD, "--tenant", "acme", "--yes")
    acme = config(home, "acme")
    assert acme.lm
    assert (acme.lm.model, acme.candidate_lms) == (OLD, [])


def test_it_says_what_to_do_about_what_it_cannot_change(home: Path, version: str) -> None:
    told = autoopt("models", "replace", "openai/deployed", NEW, env={"AUTOOPT_LM": "openai/deployed"})
    assert f"not done by this command: set AUTOOPT_LM={NEW}" in told
    refused = autoopt("models", "replace", "openai/gpt-4o-min", NEW, "--yes", status=2)
    assert f"no configuration names 'openai/gpt-4o-min' -> did you mean '{OLD}'? 'autoopt models' lists" in refused
    assert "unknown provider" in autoopt("models", "replace", OLD, "nonsense/x", "--yes", status=2)
    assert "add --yes" in autoopt("models", "replace", OLD, NEW, status=2)
    assert config(home, "globex").lm == config(home, "globex").lm


def test_doctor_finds_a_version_whose_model_the_tenant_no_longer_has(home: Path, version: str) -> None:
    parts = Connections(Settings(home=home / ".autoopt"))
    assert [finding.status.value for finding in active_versions(parts)] == ["ok"]
    autoopt("config", "unset", "acme", "candidate_lms")
    first, *_ = active_versions(parts)
    assert f"acme/routing: the program asks {OLD}, which is not given here" in first.what
    assert "candidate_lms" in first.remedy


def test_show_and_diff_name_the_model(version: str) -> None:
    shown = autoopt("show", "acme", "routing")
    assert f"language model       {OLD}; an application gives {OLD} by name" in shown
    differences = autoopt("diff", "acme", "routing", "baseline", version)
    assert f"with {OLD}; an application gives {OLD} by name" in differences
    assert "language model of decide" in differences
    assert f"+ {OLD}" in differences
