"""The form for a tenant's main settings: what it shows, and what a filled-in one changes; one field of many tenants."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import FormData

from autoopt_pipeline.dashboard.bulk_change import field_paths, plan_change, wrong_value
from autoopt_pipeline.dashboard.config_form import ConfigForm, checked, default_texts, known_modules
from autoopt_pipeline.tenants.config import WEEKDAYS, chosen_fields, field_errors, parse_config
from autoopt_pipeline.tenants.stores.base import NEVER, StoredConfig

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CLOCK = st.times().map(lambda time: f"{time:%H:%M}")
SOME_MODULES = st.dictionaries(
    st.sampled_from(["routing", "modality", "workflow", "gone"]),
    st.fixed_dictionaries(
        {},
        optional={
            "mode": st.sampled_from(["off", "observe", "propose", "auto"]),
            "min_samples_for_optimization": st.none() | st.integers(1, 10**9),
            "retrain_after": st.none() | st.datetimes(timezones=st.timezones()).map(lambda at: at.isoformat()),
        },
    ),
)
LM = st.none() | st.fixed_dictionaries(
    {"model": TEXT.filter(bool).map("openai/{}".format)},
    optional={"temperature": st.none() | st.floats(0, 2), "timeout_seconds": st.floats(0.001, 1e9), "api_base": TEXT},
)
QUIET = st.fixed_dictionaries(
    {"start": CLOCK, "end": CLOCK}, optional={"weekdays": st.lists(st.sampled_from(WEEKDAYS), min_size=1, max_size=9)}
).filter(lambda hours: hours["start"] != hours["end"])
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "enable_auto_optimization": st.booleans(),
        "min_samples_for_optimization": st.integers(1, 10**9),
        "mode": st.sampled_from(["off", "observe", "propose", "auto"]),
        "modules": SOME_MODULES,
        "agents": st.lists(
            st.fixed_dictionaries(
                {"name": st.from_regex(r"[A-Za-z0-9]{1,5}", fullmatch=True)}, optional={"description": TEXT}
            ),
            max_size=3,
            unique_by=lambda agent: agent["name"],
        ),
        "lm": LM,
        "teacher_lm": LM,
        "budget": st.fixed_dictionaries({}, optional={"max_lm_calls": st.integers(1, 10**9)}),
        "daily_budget": st.fixed_dictionaries({}, optional={"max_tokens": st.none() | st.integers(0, 10**9)}),
        "quiet_hours": st.lists(QUIET, max_size=3),
        "rollout": st.fixed_dictionaries({}, optional={"holdback_fraction": st.floats(0.001, 0.5)}),
        "excluded_traces": st.lists(st.from_regex("[0-9a-f]{32}", fullmatch=True), max_size=3),
    },
)


def chosen(document: dict) -> dict:
    """What a valid configuration chose, as it is stored."""
    return chosen_fields(parse_config({"tenant_id": "acme", **document}, where="test"))


VALID = (
    DOCUMENTS.map(lambda document: {"tenant_id": "acme", **document})
    .filter(lambda document: not field_errors(document))
    .map(chosen)
)


def as_a_browser_sends(document: dict, **changes: str | list[str] | None) -> FormData:
    """The form of a document, with these inputs changed; None takes one out. Lines end with CRLF."""
    form = ConfigForm.of(document)
    inputs: dict[str, str | list[str] | None] = {**form.texts, "modules": ["", *form.modules]}
    for index, (name, description) in enumerate([*form.agents, ("", "")]):
        inputs |= {f"agents.{index}.name": name, f"agents.{index}.description": description}
    sent = []
    for name, value in (inputs | changes).items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        sent += [(name, text.replace("\n", "\r\n")) for text in values]
    return FormData(sent)


def changed(document: dict, **changes: str | list[str] | None) -> dict:
    """The document that the form makes, not checked."""
    return ConfigForm.of(document).filled_in(as_a_browser_sends(document, **changes)).applied_to(document)


def saved(document: dict, **changes: str | list[str] | None) -> dict:
    """What is stored after these inputs were changed in the document's form."""
    config, errors = checked(changed(document, **changes), document)
    assert config, errors
    return chosen_fields(config)


def merged(base: dict, newest: dict, **changes: str | list[str] | None) -> dict:
    """What the form of `base` makes of `newest`, not checked."""
    shown = ConfigForm.of(base)
    form = shown.filled_in(as_a_browser_sends(base, **changes)).rebased(shown, ConfigForm.of(newest))
    return form.applied_to(newest)


@given(VALID)
def test_a_form_that_is_sent_as_it_was_shown_changes_nothing(document: dict) -> None:
    assert changed(document) == document
    assert ConfigForm.of(document).filled_in(FormData()).applied_to(document) == document


SINGLE = st.sampled_from(
    [
        ("enable_auto_optimization", "false", False),
        ("optimization_interval_seconds", "90m", 5400),
        ("min_samples_for_optimization", "7", 7),
        ("mode", "propose", "propose"),
        ("budget.max_tokens", "12345", 12345),
        ("daily_budget.max_lm_calls", "0", 0),
    ]
)


@given(VALID, SINGLE)
def test_changing_one_field_changes_only_that_field(document: dict, change: tuple[str, str, object]) -> None:
    name, text, value = change
    after = saved(document, **{name: text})
    *parents, last = name.split(".")
    inner, before = after, document
    for parent in parents:
        inner, before = inner[parent], before.get(parent) or {}
        assert {k: v for k, v in inner.items() if k in before and k not in name.split(".")} == {
            k: v for k, v in before.items() if k not in name.split(".")
        }
    assert inner[last] == value
    top = name.partition(".")[0]
    assert {k: v for k, v in after.items() if k != top} == {k: v for k, v in document.items() if k != top}


@given(VALID, SINGLE)
def test_an_emptied_input_follows_the_default_again(document: dict, change: tuple[str, str, object]) -> None:
    name = change[0]
    emptied = saved(saved(document, **{name: change[1]}), **{name: ""})
    shown, before = ConfigForm.of(emptied), ConfigForm.of(document)
    assert shown.texts == {**before.texts, name: ""}
    assert (shown.modules, shown.agents) == (before.modules, before.agents)


@given(VALID, VALID, SINGLE)
def test_what_others_changed_meanwhile_and_what_was_typed_are_both_kept(
    base: dict, newest: dict, change: tuple[str, str, object]
) -> None:
    name, text, _ = change
    after, before, theirs = (ConfigForm.of(each) for each in (merged(base, newest, **{name: text}), base, newest))
    mine = {} if before.texts[name] == text else {name: text}
    assert after.texts == {**theirs.texts, **mine}
    assert (after.modules, after.agents) == (theirs.modules, theirs.agents)


AGENTS = {"agents": [{"name": "a", "description": "x"}, {"name": "b"}]}


def test_agents_are_added_changed_and_removed() -> None:
    assert saved(chosen({}), **{"agents.0.name": "new"})["agents"] == [{"name": "new"}]
    after = saved(chosen(AGENTS), **{"agents.1.description": "why", "agents.0.remove": "yes"})
    assert after["agents"] == [{"name": "b", "description": "why"}]
    assert "agents" not in saved(chosen(AGENTS), **{"agents.0.remove": "yes", "agents.1.remove": "yes"})


def test_an_empty_row_is_no_agent() -> None:
    assert changed(chosen(AGENTS), **{"agents.2.name": " "}) == chosen(AGENTS)


def test_an_error_names_its_row_also_behind_a_row_that_is_removed() -> None:
    document = chosen(AGENTS)
    wrong = {"agents.0.remove": "yes", "agents.1.name": "not a name", "agents.2.description": "nameless"}
    config, errors = checked(changed(document, **wrong), document)
    assert config is None
    assert set(errors) == {"agents.0.name", "agents.1.name"}
    assert "not a name" in errors["agents.0.name"]


@pytest.mark.parametrize(
    ("inputs", "name", "words"),
    [
        ({"optimization_interval_seconds": "often"}, "optimization_interval_seconds", "often"),
        ({"optimization_interval_seconds": "60d"}, "", "must not be shorter"),
        ({"agents.0.name": "a", "agents.1.name": "a"}, "agents", "listed twice"),
        ({"lm.api_key_env": "OPENAI_API_KEY"}, "lm.model", "is missing"),
        ({"lm.model": "nonsense"}, "lm.model", "as DSPy does"),
        ({"modules": ["", "nonsense"]}, "modules", "nonsense"),
    ],
)
def test_an_error_names_its_field(inputs: dict, name: str, words: str) -> None:
    document = chosen({})
    config, errors = checked(changed(document, **{"agents.1.name": "", **inputs}), document)
    assert config is None
    assert words in errors[name]


def test_a_module_whose_package_is_gone_can_be_taken_off_the_list() -> None:
    document = chosen({"modules": {"gone": {}, "routing": {"mode": "off"}}})
    assert known_modules(document)["gone"] is False
    config, errors = checked(changed(document, enable_auto_optimization="false"), {})
    assert config is None
    assert "gone" in errors["modules"]
    assert saved(document, modules=[""])["modules"] == {"routing": {"mode": "off"}}


def test_turning_one_default_module_off_keeps_the_others() -> None:
    after = saved(chosen({}), modules=["", "routing", "cross_modal"])
    assert after["modules"] == {"modality": {"mode": "off"}, "routing": {}, "cross_modal": {}}


def test_a_module_that_is_turned_off_keeps_its_settings() -> None:
    document = chosen({"modules": {"routing": {"min_samples_for_optimization": 9}}})
    off = saved(document, modules=[""])
    assert off["modules"] == {"routing": {"min_samples_for_optimization": 9, "mode": "off"}}
    assert saved(off, modules=["", "routing"]) == document


def test_agents_and_modules_that_others_changed_meanwhile_are_kept() -> None:
    base = chosen({**AGENTS, "modules": {"routing": {}}})
    newest = chosen(
        {
            "agents": [{"name": "c"}, {"name": "b"}, {"name": "a", "description": "theirs"}],
            "modules": {"routing": {}, "workflow": {}},
        }
    )
    mine = {"agents.0.description": "mine", "agents.1.remove": "yes", "agents.2.name": "d"}
    after = merged(base, newest, modules=["", "routing", "modality"], **mine)
    assert after["agents"] == [
        {"name": "c"},
        {"name": "a", "description": "theirs"},
        {"name": "a", "description": "mine"},
        {"name": "d"},
    ]
    assert set(after["modules"]) == {"routing", "workflow", "modality"}


def test_the_defaults_are_shown_as_people_write_them() -> None:
    defaults = default_texts()
    assert defaults["optimization_interval_seconds"] == "1h"
    assert defaults["enable_auto_optimization"] == "true"
    assert defaults["lm.model"] == ""


def test_what_may_be_a_key_is_not_shown_again() -> None:
    stored = ConfigForm.of(chosen({"lm": {"model": "m", "api_key_env": "OLD_API_KEY"}}))
    inputs = {"lm.model": "n", "lm.api_key_env": "sk-secret", "lm.api_base": "https://me:secret@here"}
    texts = stored.filled_in(FormData(inputs)).without_secrets(stored.texts).texts
    assert (texts["lm.model"], texts["lm.api_key_env"], texts["lm.api_base"]) == ("n", "OLD_API_KEY", "")
    form = stored.filled_in(FormData({"lm.api_key_env": "MY_API_KEY"}))
    assert form.without_secrets(stored.texts) == form


def test_one_field_of_many_tenants_is_planned_one_by_one() -> None:
    name = "min_samples_for_optimization"

    def planned(document: dict, text: str) -> tuple[str, ...]:
        plan = plan_change(StoredConfig("acme", 3, NEVER, json.dumps({"tenant_id": "acme", **document})), name, text)
        return (*(f"{each.before}->{each.after}" for each in plan.changes), "saved" if plan.after else "", plan.refused)

    assert planned({}, "7") == ("100->7", "saved", "")
    assert planned({name: 7}, "7") == ("", "")
    assert planned({}, "100") == ("saved", "")
    assert planned({name: 100}, "") == ("saved", "")
    assert planned({}, "") == ("", "")
    assert "mode" in planned({"mode": "maybe"}, "7")[-1]


def test_a_field_inside_another_is_planned_with_what_is_beside_it() -> None:
    def planned(document: dict, path: str, text: str) -> dict | None:
        plan = plan_change(StoredConfig("acme", 3, NEVER, json.dumps({"tenant_id": "acme", **document})), path, text)
        return chosen_fields(plan.after) if plan.after else None

    both = {"budget": {"max_lm_calls": 5, "max_tokens": 6}}
    assert planned(both, "budget.max_tokens", "") == chosen({"budget": {"max_lm_calls": 5}})
    assert planned({"budget": {"max_tokens": 6}}, "budget.max_tokens", "") == chosen({})
    off = planned({}, "modules.modality.mode", "off")
    assert off == chosen({"modules": {"modality": {"mode": "off"}, "routing": {}, "cross_modal": {}}})


def test_a_value_that_no_configuration_can_have_is_refused_before_any_tenant_is_read() -> None:
    assert "or more" in wrong_value("min_samples_for_optimization", "0")
    assert "has to be a duration" in wrong_value("optimization_interval_seconds", "often")
    assert wrong_value("optimization_interval_seconds", "2h") == ""
    assert wrong_value("optimization_interval_seconds", "60d") == ""  # a tenant with a longer lookback can have it
    assert wrong_value("lm.concurrency", "4") == ""  # a tenant with a model of its own can have it
    assert not any(path.startswith("agents") or path == "tenant_id" for path in field_paths())
    assert {"modules.routing.mode", "teacher_lm.model", "daily_budget.max_tokens"} <= set(field_paths())
