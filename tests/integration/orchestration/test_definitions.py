"""The public face in Dagster: what loads, and how light it is."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._cli.utils import get_possibly_temporary_instance_for_cli

from tests.support.project import PROJECT

HEAVY = ("dspy", "litellm", "kubernetes", "pandas", "phoenix", "optuna", "redis", "opentelemetry.sdk")


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_definitions_load_without_heavy_packages() -> None:
    code = f"import sys, autoopt_pipeline.definitions; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert in_a_fresh_process(code) == "[]"


def test_what_a_run_and_the_sensor_need_is_defined() -> None:
    from autoopt_pipeline.definitions import defs

    dg.Definitions.validate_loadable(defs)
    face = {
        "assets": {
            spec.key.to_user_string(): (
                spec.group_name,
                sorted(spec.kinds),
                spec.partitions_def.name,
                sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            )
            for spec in defs.resolve_all_asset_specs()
            if isinstance(spec.partitions_def, dg.DynamicPartitionsDefinition)
        },
        "checks": sorted(
            key.to_user_string() for asset in defs.assets or () for key in getattr(asset, "check_keys", ())
        ),
        "sensors": {
            sensor.name: (sensor.default_status.value, sensor.minimum_interval_seconds) for sensor in defs.sensors or ()
        },
    }
    assert face == {
        "assets": {
            "modality": ("modules", ["dspy"], "tenants", []),
            "routing": ("modules", ["dspy"], "tenants", []),
            "cross_modal": ("modules", ["dspy"], "tenants", []),
            "workflow": ("modules", ["dspy"], "tenants", []),
            "unified": ("modules", ["dspy"], "tenants", ["modality", "routing", "workflow"]),
        },
        "checks": ["cross_modal:data", "modality:data", "routing:data", "unified:data", "workflow:data"],
        "sensors": {
            "tenant_partitions_sensor": ("RUNNING", 60),
            "auto_optimization_sensor": ("RUNNING", 60),
            "rollout_monitor_sensor": ("RUNNING", 60),
            "live_quality_sensor": ("RUNNING", 60),
            "run_retention_sensor": ("RUNNING", 600),
        },
    }


def test_the_local_instance_runs_one_run_of_a_tenant_at_a_time_and_sends_nothing_home() -> None:
    config = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    assert config["telemetry"] == {"enabled": False}
    (limit,) = config["concurrency"]["runs"]["tag_concurrency_limits"]
    assert limit == {"key": "dagster/partition", "value": {"applyLimitPerUniqueValue": True}, "limit": 1}


def test_steps_that_ask_language_models_share_a_pool_whose_places_come_back_when_a_run_is_killed() -> None:
    from autoopt_pipeline.definitions import defs

    pools = {asset.op.pool for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)}
    assert pools == {"lm"}
    config = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    assert config["concurrency"]["pools"]["granularity"] == "op"
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"] > 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AUTOOPT_SCHEDULE_JITTER", "5", "AUTOOPT_SCHEDULE_JITTER: has to be"),
        ("AUTOOPT_MODULES_FILE", "/nowhere.yaml", "/nowhere.yaml"),
        (
            "AUTOOPT_PHOENIX_ENDPOINT",
            "localhost:6006",
            "AUTOOPT_PHOENIX_ENDPOINT: 'localhost:6006' does not begin with",
        ),
        ("AUTOOPT_DAGSTER_UI_URL", "127.0.0.1:3100", "AUTOOPT_DAGSTER_UI_URL: '127.0.0.1:3100' does not begin with"),
        ("AUTOOPT_LM_API_KEY_ENV", "sk-1234", "AUTOOPT_LM_API_KEY_ENV: has to be the name of a variable"),
    ],
)
def test_a_wrong_setting_is_one_line_and_one_frame_where_dagster_loads(name: str, value: str, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import autoopt_pipeline.definitions"],
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    _, *frames, error = done.stderr.strip().splitlines()
    assert words in error
    assert " -> " in error
    assert sum(line.lstrip().startswith("File ") for line in frames) == 2  # the import, and the module


def test_the_local_instance_keeps_everything_under_dot_autoopt(home: Path) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("tenants", ["acme"])
    assert {path.name for path in home.iterdir()} == {"dagster.yaml", "workspace.yaml", ".autoopt"}


def test_the_local_instance_is_the_same_one_from_every_folder(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("tenants", ["acme"])
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    code = "import dagster as dg; print(dg.DagsterInstance.get().get_dynamic_partitions('tenants'))"
    seen = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "['acme']"
    assert list(elsewhere.iterdir()) == []
    # As `dagster dev` in the folder itself, which needs no DAGSTER_HOME.
    monkeypatch.delenv("DAGSTER_HOME")
    with get_possibly_temporary_instance_for_cli() as instance:
        assert instance.get_dynamic_partitions("tenants") == ["acme"]
