import json

import pytest

from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.tenants.seed_import import read_rows

SEED_ROW = {
    "tenant_id": "acme:production",
    "scope": "routing",
    "service": "routing_agent",
    "config_key": "routing_config",
    "version": 3,
    "config_value": {
        "tenant_id": "acme:production",
        "routing_mode": "tiered",
        "gliner_threshold": 0.3,
        "llm_routing_model": "ollama/gemma3:4b",
        "enable_auto_optimization": False,
        "optimization_interval_seconds": 7200,
        "min_samples_for_optimization": 250,
        "dspy_max_labeled_demos": 40,
        "metadata": {},
    },
    "created_at": "2025-10-24T23:32:51.000000",
}


def test_rows_of_the_seed_are_read_and_what_is_ignored_is_listed() -> None:
    (imported,), refused = read_rows(json.dumps([SEED_ROW]))
    assert refused == []
    assert imported.config.tenant_id == "acme:production"
    assert imported.config.enable_auto_optimization is False
    assert imported.config.optimization_interval_seconds == 7200
    assert imported.config.min_samples_for_optimization == 250
    assert imported.config.dspy_max_labeled_demos == 40
    assert imported.ignored == ("gliner_threshold", "llm_routing_model", "metadata", "routing_mode")


def test_of_several_versions_the_newest_counts() -> None:
    older = {**SEED_ROW, "version": 2, "config_value": {"min_samples_for_optimization": 1}}
    (imported,), _ = read_rows("\n".join(json.dumps(row) for row in (SEED_ROW, older)))
    assert imported.config.min_samples_for_optimization == 250


def test_other_kinds_of_configuration_in_the_same_export_are_passed_over() -> None:
    telemetry = {"tenant_id": "acme:production", "config_key": "telemetry_config", "version": 7, "config_value": {}}
    (imported,), refused = read_rows(json.dumps([SEED_ROW, telemetry]))
    assert refused == []
    assert imported.config.min_samples_for_optimization == 250


def test_a_bad_row_does_not_stop_the_others() -> None:
    rows = [{"tenant_id": "a/b"}, SEED_ROW, 7, {"tenant_id": "x", "min_samples_for_optimization": "no"}]
    imported, refused = read_rows(json.dumps(rows))
    assert [one.config.tenant_id for one in imported] == ["acme:production"]
    assert [row.row for row in refused] == [1, 3, 4]
    assert all("\n" not in row.reason for row in refused)


def test_what_is_no_json_names_the_line() -> None:
    with pytest.raises(InvalidConfig, match="line 2 is not JSON"):
        read_rows('{"tenant_id": "a"}\n{oops\n')
