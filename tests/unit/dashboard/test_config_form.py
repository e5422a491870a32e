"""Forms made from the model of configurations: what they show, and what a filled-in one changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.dashboard.config_form import (
    changeable,
    checked,
    configuration_shapes,
    plan_change,
    without_secrets,
    wrong_value,
)
from autoopt_pipeline.dashboard.form_fields import Group, Input, Kind, fill, form, rebased, shown
from autoopt_pipeline.tenants.config import WEEKDAYS, chosen_fields, parse_config, wrong_fields
from autoopt_pipeline.tenants.stores.base import NEVER, StoredConfig

SHAPES = configuration_shapes()

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CLOCK = st.times().map(lambda time: f"{time:%H:%M}")
SOME_MODULES = st.dictionaries(
    st.sampled_from(["routing", "modality", "workflow", "gone"]),
    st.fixed_dictionaries(
        {},
        optional={
            "enabled": st.booleans(),
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
        "promotion_mode": st.sampled_from(["auto", "manual"]),
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
    .filter(lambda document: not wrong_fields(document))
    .map(chosen)
)


def as_a_browser_sends(texts: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Several lines come with CRLF; boxes that are ticked come with the mark that the form has them."""
    several = {"excluded_traces"}
    return {
        name: ("\r\n".join(typed),)
        if name in several
        else ("", *typed)
        if name == "modules" or name.endswith("weekdays")
        else tuple(text.replace("\n", "\r\n") for text in typed)
        for name, typed in texts.items()
    }


def saved(document: dict, changes: dict[str, tuple[str, ...]]) -> dict:
    """What is stored after these inputs were changed in the document's form."""
    posted = as_a_browser_sends(shown(SHAPES, document)) | changes
    texts = shown(SHAPES, document) | rebased(SHAPES, document, document, posted)
    config, errors = checked(fill(SHAPES, document, texts))
    assert config, errors
    return chosen_fields(config)


@given(VALID)
def test_a_form_that_is_sent_as_it_was_shown_changes_nothing(document: dict) -> None:
    texts = shown(SHAPES, document)
    posted = as_a_browser_sends(texts)
    assert rebased(SHAPES, document, document, posted) == {}
    assert fill(SHAPES, document, posted).document == document
    assert fill(SHAPES, document, {}).document == document


SINGLE = st.sampled_from(
    [
        ("enable_auto_optimization", "false", False),
        ("min_samples_for_optimization", "7", 7),
        ("promotion_mode", "manual", "manual"),
        ("budget.max_tokens", "12345", 12345),
        ("daily_budget.max_lm_calls", "0", 0),
        ("rollout.max_days", "1.5", 1.5),
        ("modules.modality.min_samples_for_optimization", "9", 9),
        ("modules.routing.retrain_after", "2026-02-03T04:05", "2026-02-03T04:05:00Z"),
        ("retry.backoff", "constant", "constant"),
    ]
)


@given(VALID, SINGLE)
def test_changing_one_field_changes_only_that_field(document: dict, change: tuple[str, str, object]) -> None:
    name, text, value = change
    if "gone" in document.get("modules", {}):
        document = document | {"modules": {"routing": {}}}
    after = saved(document, {name: (text,)})
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
    if "gone" in document.get("modules", {}):
        document = document | {"modules": {"routing": {}}}
    name = change[0]
    emptied = saved(saved(document, {name: (change[1],)}), {name: ("",)})
    assert shown(SHAPES, emptied)[name] == ("",)
    if not name.startswith("modules."):
        assert shown(SHAPES, emptied) == shown(SHAPES, document) | {name: ("",)}


@given(VALID, VALID, SINGLE)
def test_what_others_changed_meanwhile_and_what_was_typed_are_both_kept(
    base: dict, newest: dict, change: tuple[str, str, object]
) -> None:
    name, text, _ = change
    posted = as_a_browser_sends(shown(SHAPES, base)) | {name: (text,)}
    carried = rebased(SHAPES, base, newest, posted)
    assert carried == ({} if shown(SHAPES, base).get(name) == (text,) else {name: (text,)})
    merged = fill(SHAPES, newest, shown(SHAPES, newest) | carried).document
    assert shown(SHAPES, merged) | carried == shown(SHAPES, newest) | carried or name.startswith("modules.")


AGENTS = {"agents": [{"name": "a", "description": "x"}, {"name": "b"}]}


def test_rows_are_added_changed_and_taken_away() -> None:
    assert saved(chosen({}), {"agents.0.name": ("new",)})["agents"] == [{"name": "new"}]
    after = saved(chosen(AGENTS), {"agents.1.description": ("why",), "agents.0:remove": ("1",), "agents.2.name": ("",)})
    assert after["agents"] == [{"name": "b", "description": "why"}]
    assert "agents" not in saved(chosen(AGENTS), {"agents.0:remove": ("1",), "agents.1:remove": ("1",)})


def test_an_empty_row_is_none() -> None:
    empty = {"agents.2.name": ("",), "agents.2.description": ("",)}
    assert fill(SHAPES, chosen(AGENTS), empty).document == chosen(AGENTS)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        ("2026-02-03T06:05:00+02:00", "2026-02-03T04:05"),
        ("2026-02-03T04:05:06.789Z", "2026-02-03T04:05:06"),
    ],
)
def test_a_moment_is_shown_as_browsers_show_and_send_it(moment: str, text: str) -> None:
    document = chosen({"modules": {"routing": {"retrain_after": moment}}})
    assert shown(SHAPES, document)["modules.routing.retrain_after"] == (text,)


def test_what_is_wrong_is_told_at_the_input_also_behind_a_row_that_is_taken_away() -> None:
    posted = {"agents.0:remove": ("1",), "agents.1.name": ("not a name",), "agents.2.description": ("nameless",)}
    config, errors = checked(fill(SHAPES, chosen(AGENTS), posted))
    assert config is None
    assert set(errors) == {"agents.1.name", "agents.2.name"}
    assert "not a name" in errors["agents.1.name"]


@pytest.mark.parametrize(
    ("posted", "name", "words"),
    [
        ({"optimization_interval_seconds": ("often",)}, "optimization_interval_seconds", "often"),
        ({"rollout.monitor": ("false",), "rollout.canary_fraction": ("0.1",)}, "rollout", "needs a rollout"),
        ({"lookback_seconds": ("60",)}, "", "must not be shorter"),
        ({"modules.routing.retrain_after": ("soon",)}, "modules.routing.retrain_after", "soon"),
        ({"quiet_hours.0.start": ("25:00",), "quiet_hours.0.end": ("7",)}, "quiet_hours.0.start", "25:00"),
        ({"lm.concurrency": ("4",)}, "lm.model", "is missing"),
    ],
)
def test_a_rule_that_is_broken_is_told_where_it_is(posted: dict, name: str, words: str) -> None:
    config, errors = checked(fill(SHAPES, {"tenant_id": "acme"}, posted))
    assert config is None
    assert words in errors[name]


def test_a_module_whose_package_is_gone_can_be_taken_off_the_list() -> None:
    document = chosen({"modules": {"gone": {}, "routing": {"enabled": False}}})
    config, errors = checked(fill(SHAPES, document, {"enable_auto_optimization": ("false",)}))
    assert config is None
    assert "gone" in errors["modules"]
    assert saved(document, {"modules": ("", "routing")})["modules"] == {"routing": {"enabled": False}}


def test_modules_follow_the_default_again_when_told_so() -> None:
    document = chosen({"modules": {"routing": {"enabled": False}}})
    texts = {"modules:default": ("1",)}
    assert "modules" not in fill(SHAPES, document, texts).document


def test_choosing_for_one_default_module_keeps_the_others() -> None:
    after = saved(chosen({}), {"modules.modality.enabled": ("false",)})
    assert after["modules"] == {"modality": {"enabled": False}, "routing": {}, "cross_modal": {}}


def test_what_others_added_to_a_list_meanwhile_is_kept() -> None:
    base = chosen({**AGENTS, "excluded_traces": ["1" * 32], "modules": {"routing": {}}})
    newest = chosen(
        {
            "agents": [{"name": "c"}, {"name": "b"}, {"name": "a", "description": "theirs"}],
            "excluded_traces": ["1" * 32, "2" * 32],
            "modules": {"routing": {}, "workflow": {}},
        }
    )
    typed = {
        "agents.0.description": ("mine",),
        "agents.1:remove": ("1",),
        "agents.2.name": ("d",),
        "excluded_traces": (f"{'1' * 32}\r\n{'3' * 32}",),
        "modules": ("", "routing", "modality"),
    }
    carried = rebased(SHAPES, base, newest, as_a_browser_sends(shown(SHAPES, base)) | typed)
    merged = fill(SHAPES, newest, shown(SHAPES, newest) | carried).document
    assert merged["agents"] == [
        {"name": "c"},
        {"name": "a", "description": "theirs"},
        {"name": "a", "description": "mine"},
        {"name": "d"},
    ]
    assert merged["excluded_traces"] == ["1" * 32, "2" * 32, "3" * 32]
    assert set(merged["modules"]) == {"routing", "workflow", "modality"}


def parts(document: dict) -> dict[str, Input | Group]:
    found = {}

    def walk(some: tuple) -> None:
        for part in some:
            found.setdefault(part.name, part)
            if isinstance(part, Group):
                walk(part.parts)

    walk(form(SHAPES, document, shown(SHAPES, document)))
    return found


def test_an_input_knows_its_limits_its_default_and_whether_it_is_chosen() -> None:
    found = parts(chosen({"budget": {"max_lm_calls": 5}}))
    demos = found["dspy_max_labeled_demos"]
    assert isinstance(demos, Input)
    assert (demos.default, demos.chosen) == ("50", False)
    assert demos.shape.limits == {"min": "1", "max": "200", "step": "1"}
    assert found["budget.max_lm_calls"].chosen
    assert not found["budget.max_tokens"].chosen
    assert found["rollout.holdback_fraction"].shape.in_words == "more than 0, up to 0.5"
    assert found["promotion_mode"].shape.kind is Kind.CHOICE
    assert found["quiet_hours.0.weekdays"].shape.options == WEEKDAYS
    assert found["agents.0.name"].shape.required
    assert found["modules.routing.retrain_after"].shape.kind is Kind.MOMENT


def test_what_may_be_a_key_is_not_shown_again() -> None:
    typed = {"lm.api_key_env": ("sk-secret",), "lm.model": ("m",), "teacher_lm.api_key_env": ("MY_API_KEY",)}
    assert set(without_secrets(typed)) == {"lm.model", "teacher_lm.api_key_env"}


def test_one_field_of_many_tenants_is_planned_one_by_one() -> None:
    name = "min_samples_for_optimization"

    def planned(document: dict, text: str) -> tuple[str, ...]:
        plan = plan_change(SHAPES, StoredConfig("acme", 3, NEVER, {"tenant_id": "acme", **document}), name, text)
        return (*(f"{each.before}->{each.after}" for each in plan.changes), "saved" if plan.after else "", plan.refused)

    assert planned({}, "7") == ("100->7", "saved", "")
    assert planned({name: 7}, "7") == ("", "")
    assert planned({}, "100") == ("saved", "")
    assert planned({name: 100}, "") == ("saved", "")
    assert "promotion_mode" in planned({"promotion_mode": "maybe"}, "7")[-1]


def test_a_value_that_no_configuration_can_have_is_refused_before_any_is_looked_at() -> None:
    assert "or more" in wrong_value(SHAPES, "min_samples_for_optimization", "0")
    assert wrong_value(SHAPES, "lm.concurrency", "4") == ""  # a tenant with a model of its own can have it
    assert "agents.0.name" not in changeable(SHAPES)
    assert "modules.routing.enabled" in changeable(SHAPES)
