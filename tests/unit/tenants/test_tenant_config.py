import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.tenants.config import (
    Agent,
    LMSettings,
    ModuleSettings,
    QuietHours,
    RoutingConfigUnified,
    check_modules,
    parse_config,
    with_field,
)
from autoopt_pipeline.validation import describe_error


def test_defaults_are_those_of_the_seed() -> None:
    config = RoutingConfigUnified(tenant_id="default")
    assert config.enable_auto_optimization is True
    assert config.optimization_interval_seconds == 3600
    assert config.min_samples_for_optimization == 100
    assert list(config.modules) == ["modality", "routing", "cross_modal"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"tenant_id": "a", "optimisation_interval_seconds": 5}, "did you mean 'optimization_interval_seconds'"),
        ({"tenant_id": "a", "budget": {"max_lm_cals": 5}}, "did you mean 'max_lm_calls'"),
        ({"tenant_id": "a", "optimization_interval_seconds": 0}, "optimization_interval_seconds"),
        ({"tenant_id": "a", "min_samples_for_optimization": "many"}, "min_samples_for_optimization"),
        ({"tenant_id": "a/b"}, "invalid tenant id 'a/b'"),
        ({"tenant_id": "a", "agents": [{"name": "x"}, {"name": "x"}]}, "agent 'x' is listed twice"),
        ({"tenant_id": "a", "mode": "maybe"}, "mode"),
        ({"tenant_id": "a", "lookback_seconds": 60}, "lookback_seconds must not be shorter"),
        (
            {"tenant_id": "a", "modules": {"routing": {"retrain_after": "0001-01-01T00:00:00+05:00"}}},
            "1 to 9999",
        ),
        ([1, 2], "has to hold fields"),
        ("{broken", "has to hold fields"),
        ({}, "tenant_id"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(data: object, words: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        parse_config(data, where="tenant a")
    assert words in str(error.value)
    assert "tenant a" in str(error.value)
    assert "\n" not in str(error.value)


def test_setting_one_field_never_resets_another() -> None:
    config = RoutingConfigUnified(tenant_id="a", min_samples_for_optimization=7, dspy_max_labeled_demos=12)
    changed = with_field(config, "budget.max_lm_calls", "2000")
    assert changed.budget.max_lm_calls == 2000
    assert changed.model_copy(update={"budget": config.budget}) == config


@pytest.mark.parametrize(
    ("path", "value"), [("tenant_id", "b"), ("nonsense", "1"), ("agents.0", "x"), ("budget.max_lm_calls.x", "1")]
)
def test_setting_what_cannot_be_set_is_an_error(path: str, value: str) -> None:
    with pytest.raises(InvalidConfig):
        with_field(RoutingConfigUnified(tenant_id="a"), path, value)


def test_module_settings_override_the_tenants() -> None:
    config = with_field(RoutingConfigUnified(tenant_id="a"), "modules.routing.min_samples_for_optimization", "5")
    assert config.min_samples("routing") == 5
    assert config.min_samples("modality") == 100


def test_an_unknown_module_is_refused_with_the_nearest_one() -> None:
    config = parse_config({"tenant_id": "a", "modules": {"ruting": {}}}, where="x")
    with pytest.raises(InvalidConfig, match=r"unknown module 'ruting'.*did you mean 'routing'"):
        check_modules(config)


def test_a_configuration_survives_json() -> None:
    config = RoutingConfigUnified(tenant_id="a:b", agents=[{"name": "x", "description": "y"}])
    assert parse_config(json.loads(config.model_dump_json()), where="x") == config


def test_forgotten_traces_are_trace_ids_each_once_in_lower_case() -> None:
    config = parse_config({"tenant_id": "a", "excluded_traces": ["A" * 32, "a" * 32, "0" * 32]}, where="x")
    assert config.excluded_traces == ["a" * 32, "0" * 32]


@pytest.mark.parametrize("wrong", [["abc"], ["g" * 32], ["a" * 33], [f"{number:032x}" for number in range(1001)]])
def test_a_list_of_forgotten_traces_that_is_none_or_too_long_is_refused(wrong: list[str]) -> None:
    with pytest.raises(InvalidConfig, match="excluded_traces"):
        parse_config({"tenant_id": "a", "excluded_traces": wrong}, where="x")


def test_the_moment_to_retrain_after_is_kept_in_utc_and_needs_a_zone() -> None:
    config = with_field(
        RoutingConfigUnified(tenant_id="a"), "modules.routing.retrain_after", "2026-01-01T02:00:00+02:00"
    )
    moment = config.retrain_after("routing")
    assert moment is not None
    assert moment.isoformat() == "2026-01-01T00:00:00+00:00"
    assert parse_config(json.loads(config.model_dump_json()), where="x") == config
    with pytest.raises(InvalidConfig, match="retrain_after"):
        with_field(config, "modules.routing.retrain_after", "2026-01-01T02:00:00")


@pytest.mark.parametrize("name", ["AUTOOPT_PHOENIX_API_KEY", "PHOENIX_API_KEY"])
def test_phoenixs_key_is_never_sent_to_a_language_model(name: str) -> None:
    lm = {"model": "openai/x", "api_base": "http://elsewhere", "api_key_env": name}
    for field in ({"lm": lm}, {"teacher_lm": lm}, {"judge": {"lm": lm}}):
        with pytest.raises(InvalidConfig, match="not Phoenix's"):
            parse_config({"tenant_id": "acme", **field}, where="test")


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "elsewhere:8000", "http://", "http://me:s3cr3t@host", "http://me:s3cr3t/x@host"]
)
def test_an_endpoint_is_on_the_web_and_a_password_in_it_is_refused_and_not_quoted(address: str) -> None:
    with pytest.raises(InvalidConfig, match=r"lm\.api_base: give http:// or https://") as error:
        parse_config({"tenant_id": "acme", "lm": {"model": "openai/x", "api_base": address}}, where="test")
    assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"lookback_seconds": 10**18},
        {"max_run_seconds": 10**18},
        {"budget": {"max_lm_calls": 10**400}},
        {"lm": {"model": "openai/x", "timeout_seconds": float("inf")}},
        {"modules": {"routing": {"retrain_after": "9999-12-31T23:59:59-23:00"}}},
        {"agents": [{"name": f"a{number}"} for number in range(501)]},
    ],
)
def test_numbers_and_lists_beyond_all_sense_are_refused_when_they_are_read(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig):
        parse_config({"tenant_id": "acme", **fields}, where="test")


WRONG: list[Any] = [None, True, "x", "", -1, 10**20, 1.5, float("nan"), [], ["x"], {}, {"x": 1}, [{}] * 2000, "y" * 999]


def test_each_field_tells_each_wrong_value_in_our_own_words() -> None:
    told = [
        what
        for model in (RoutingConfigUnified, LMSettings, QuietHours, ModuleSettings, Agent)
        for field in model.model_fields
        for value in WRONG
        for what in _told_by(model, field, value)
    ]
    assert len(told) > 200
    theirs = ("Input should", "should have", "should match", "Field required", "a valid ")
    assert [what for what in told if any(words in what for words in theirs)] == []


def _told_by(model: type[BaseModel], field: str, value: Any) -> Iterator[str]:
    try:
        model.model_validate({field: value})
    except ValidationError as e:
        yield from (describe_error(error) for error in e.errors())
