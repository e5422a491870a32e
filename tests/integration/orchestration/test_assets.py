"""The assets, run the ways a person runs them, against a real Phoenix and a real instance."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.devtools.sample_tenants import sample_config, send_sample_traffic
from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, TrafficProfile
from autoopt_pipeline.orchestration.assets import WINDOW_END_TAG, build_module_assets
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.run_history.outcomes import read_attempts, read_outcomes
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.tenants.config import Budget, LMSettings, RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix, Project
from tests.support.materializing import ACME, failure_of, materialize, metadata_of
from tests.support.project import PROJECT


def project_of(phoenix: Phoenix, tenant: str) -> Project:
    project = phoenix.project(project_name(tenant))
    assert project is not None
    return project


def configure(home: Path, **fields: object) -> None:
    config = sample_config(ACME).model_copy(update=fields)
    write_config(open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"), config)


def test_a_materialization_says_what_a_person_wants_to_know(
    configured: Path, acme: datetime, instance: dg.DagsterInstance, phoenix: Phoenix
) -> None:
    result = materialize(instance, "acme", ["routing", "modality"], {WINDOW_END_TAG: acme.isoformat()})
    assert result.success
    metadata = metadata_of(result, "routing")
    assert metadata["verdict"] == "promoted"
    assert metadata["candidate_score"] > metadata["incumbent_score"]
    assert "stand-in" in metadata["language_model"]
    assert metadata["version"] == metadata["active_version"]
    assert metadata["examples_holdout"] >= 100
    for part in (
        "Candidates",
        "Holdout",
        "labels that decided",
        "held-out traces at alpha",
        "What changed",
        "Confusion",
        "confidence can be believed",
        "Fixed",
        "stand-in",
    ):
        assert part in metadata["report"]
    traces = f"{phoenix.endpoint}/projects/{project_of(phoenix, 'acme').id}/traces/"
    assert metadata["report"].count(traces) >= min(20, metadata["fixed"])
    assert 0 < metadata["candidate_brier"] < 0.5
    assert metadata["phoenix_comparison"].startswith(f"{phoenix.endpoint}/datasets/")
    assert metadata["balance"].keys() == set(SAMPLE_AGENTS)
    assert metadata["lm_calls"] > 0
    assert metadata_of(result, "modality")["verdict"] in {"promoted", "rejected"}

    attempts = read_attempts(instance, ["routing"], failures_since=acme)
    outcome = read_outcomes(instance, attempts)["acme", "routing"]
    assert outcome.window_end == acme
    assert outcome.labels == set(SAMPLE_AGENTS)
    assert outcome.decisions == metadata["spans_read"] == ACME.traces
    assert outcome.annotations
    assert outcome.annotations.total == metadata["annotation_total"] > 0
    assert outcome.annotations.new(outcome.annotations.total, oldest=project_of(phoenix, "acme").oldest) == 0


def test_all_five_modules_run_together_and_unified_after_its_parts(
    configured: Path, acme: datetime, instance: dg.DagsterInstance
) -> None:
    configure(configured, budget=Budget(max_lm_calls=2000))  # what they find is the affair of test_modules_learn.py
    modules = ["unified", "cross_modal", "workflow", "routing", "modality"]
    result = materialize(instance, "acme", modules, {WINDOW_END_TAG: acme.isoformat()})
    assert result.success
    metadata = {module: metadata_of(result, module) for module in modules}
    assert metadata["workflow"]["verdict"] == "promoted"
    assert {part["verdict"] for part in metadata.values()} <= {"promoted", "rejected", "inconclusive"}
    assert metadata["unified"]["annotation_total"] > metadata["workflow"]["annotation_total"] > 0
    # It started from the plans that were learnt a moment ago, so it is compared with them, not with the baseline.
    artifacts = Connections(load_settings()).artifacts("acme", "workflow")
    assert artifacts.active() is not None
    if "incumbent_score" in metadata["unified"]:
        assert metadata["unified"]["incumbent_score"] > 0.3
    checks = {check.asset_key.to_user_string(): check for check in result.get_asset_check_evaluations()}
    assert checks.keys() == set(modules)
    for check in checks.values():
        assert check.severity is dg.AssetCheckSeverity.WARN
        provenance: Any = check.metadata["provenance"].value
        assert provenance["human"] > 0


def test_unified_does_not_start_where_a_part_failed_and_dagster_says_so(
    configured: Path, acme: datetime, instance: dg.DagsterInstance
) -> None:
    active = Connections(load_settings()).artifacts("acme", "routing")
    active._files.create("acme/routing/transitions/00000001.json", b"not json")
    result = materialize(instance, "acme", ["unified", "routing"], {WINDOW_END_TAG: acme.isoformat()})
    assert "restore it from a backup" in failure_of(result)
    assert not result.filter_events(lambda e: e.step_key == "unified")
    said = [entry.message for entry in instance.all_logs(result.run_id)]
    assert "Dependencies for step unified failed: ['routing']. Not executing." in said


def test_the_data_check_warns_where_nobody_reviews_and_where_spans_cannot_be_read(
    configured: Path, phoenix: Phoenix, tenant: str, instance: dg.DagsterInstance
) -> None:
    bad = replace(
        ACME, tenant_id=tenant, habits=TrafficProfile(reviewed=0, complains=0, malformed=0.3), modules=("routing",)
    )
    end = datetime.now(UTC)
    send_sample_traffic(phoenix, bad, 60, start=end - timedelta(hours=1), end=end, seed=1)
    write_config(open_config_store(f"sqlite:///{configured / '.autoopt' / 'config.db'}"), sample_config(bad))
    result = materialize(instance, tenant, ["routing"])
    assert result.success
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert "of 60 spans cannot be read" in (check.description or "")
    assert metadata_of(result, "routing")["verdict"] == "not_enough_data"


def test_a_retried_run_sees_the_same_window(configured: Path, acme: datetime, instance: dg.DagsterInstance) -> None:
    halfway = acme - timedelta(hours=1.5)
    tags = {WINDOW_END_TAG: halfway.isoformat()}
    counts = [metadata_of(materialize(instance, "acme", ["routing"], tags), "routing")["spans_read"] for _ in range(2)]
    assert counts[0] == counts[1] == pytest.approx(ACME.traces / 2, rel=0.05)


@pytest.mark.parametrize("command", ["dagster asset materialize", "dg launch"])
def test_the_documented_commands_that_launch_work_from_any_folder(
    configured: Path,
    acme: datetime,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    page = (PROJECT / "docs" / "trigger-and-status.md").read_text()
    (line,) = re.findall(rf"^{command} .*$", page, re.MULTILINE)
    program, *arguments = shlex.split(line.replace("hooli", "acme"))
    run = [Path(sys.executable).parent / program, *arguments]
    env = dict(os.environ)
    before = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert before.returncode != 0  # the tenant is no partition yet
    with dg.DagsterInstance.from_config(str(configured)) as instance:
        register_tenant(instance, "acme")
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (pointer,) = (configured / ".autoopt" / "artifacts" / "acme" / "routing").glob("active.json")
    assert json.loads(pointer.read_text())["sequence"] == 1
    # The embedded instance keeps no state outside .autoopt/.
    assert list(elsewhere.iterdir()) == []
    assert {path.name for path in configured.iterdir()} == {"dagster.yaml", "workspace.yaml", ".autoopt"}


def test_a_tenant_without_configuration_fails_with_one_line(configured: Path, instance: dg.DagsterInstance) -> None:
    message = failure_of(materialize(instance, "stranger", ["routing"]))
    assert message.startswith("tenant stranger has no configuration -> ")


def test_a_missing_project_fails_with_one_line(configured: Path, instance: dg.DagsterInstance) -> None:
    config = RoutingConfigUnified(tenant_id="silent", agents=sample_config(ACME).agents)
    write_config(open_config_store(f"sqlite:///{configured / '.autoopt' / 'config.db'}"), config)
    message = failure_of(materialize(instance, "silent", ["routing"]))
    assert "has no project silent-cogniverse-routing" in message


def test_a_candidate_model_without_its_key_is_left_out_and_the_models_of_the_run_are_recorded(
    configured: Path, acme: datetime, instance: dg.DagsterInstance
) -> None:
    configure(configured, candidate_lms=[LMSettings(model="openai/other", api_key_env="NOBODY_SET_API_KEY")])
    result = materialize(instance, "acme", ["routing"], {WINDOW_END_TAG: acme.isoformat()})
    metadata = metadata_of(result, "routing")
    assert (metadata["verdict"], metadata["models"]) == ("promoted", ["stand-in", "openai/other"])
    assert metadata["program_models"] == {"incumbent": "stand-in", "candidate": "stand-in"}
    assert "the programs that ask openai/other were left out" in metadata["report"]
    assert "NOBODY&#95;SET&#95;API&#95;KEY is not set" in metadata["report"]
    outcomes = read_outcomes(instance, read_attempts(instance, ["routing"], failures_since=acme))
    assert outcomes["acme", "routing"].models == ("stand-in", "openai/other")


def test_a_missing_language_model_fails_with_one_line(
    configured: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOOPT_CONFIG_STORE_URL", f"sqlite:///{configured / '.autoopt' / 'config.db'}")
    message = failure_of(materialize(instance, "acme", ["routing"]))
    assert "no language model is configured" in message
    assert "AUTOOPT_LM" in message


def test_one_module_that_fails_does_not_stop_the_others(
    configured: Path, acme: datetime, instance: dg.DagsterInstance
) -> None:
    configure(configured, agents=[], budget=Budget(max_lm_calls=600))
    result = materialize(instance, "acme", ["routing", "modality"], {WINDOW_END_TAG: acme.isoformat()})
    assert not result.success
    assert "routing has 0 agents" in failure_of(result)
    assert metadata_of(result, "modality")["verdict"]


def test_a_run_without_a_partition_fails_with_one_line(home: Path, instance: dg.DagsterInstance) -> None:
    result = dg.materialize(
        build_module_assets(),
        selection=["routing"],
        instance=instance,
        resources={"services": Services()},
        raise_on_error=False,
    )
    assert failure_of(result) == (
        "the run is for no single tenant -> launch it with one partition, which is the tenant"
    )
