"""`autoopt config` as a person types it, and what it rests on."""

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.tenants.config import RoutingConfigUnified, chosen_fields, with_field
from autoopt_pipeline.tenants.diff import changed_fields
from autoopt_pipeline.tenants.store import open_config_store, read_config
from autoopt_pipeline.tenants.stores.base import NEVER, StoredConfig, TenantConfigStore
from autoopt_pipeline.tenants.yaml_format import as_text, from_text
from tests.support.command_line import AGENTS, autoopt


@pytest.fixture
def acme(home: Path) -> TenantConfigStore:
    """The store of a home where acme has two versions."""
    autoopt("tenants", "add", "acme", *AGENTS)
    autoopt("config", "set", "acme", "budget.max_lm_calls=2000")
    return open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")


def editor(code: str) -> dict[str, str]:
    """An editor that does to its file, `text`, what the code says."""
    script = f"import sys, pathlib; f = pathlib.Path(sys.argv[1]); text = f.read_text(); {code}; f.write_text(text)"
    return {"VISUAL": shlex.join([sys.executable, "-c", script])}


def test_only_what_was_chosen_is_stored_so_that_later_defaults_reach_the_tenant(acme: TenantConfigStore) -> None:
    newest = acme.history("acme")[-1].document
    assert isinstance(newest, dict)
    assert set(newest) == {"tenant_id", "agents", "budget"}
    assert newest["budget"] == {"max_lm_calls": 2000}


def test_choosing_for_one_default_module_keeps_the_others() -> None:
    config = with_field(RoutingConfigUnified(tenant_id="a"), "modules.modality.mode", "off")
    assert list(config.modules) == ["modality", "routing", "cross_modal"]
    assert chosen_fields(config)["modules"] == {"modality": {"mode": "off"}, "routing": {}, "cross_modal": {}}


def test_two_versions_differ_field_by_field(acme: TenantConfigStore) -> None:
    autoopt("config", "set", "acme", "modules.routing.mode=off")
    assert "  budget.max_lm_calls: 6000 -> 2000\n" in autoopt("config", "diff", "acme", "1", "2")
    told = json.loads(autoopt("config", "diff", "acme", "--json"))
    assert (told["from"], told["to"]) == (2, 3)
    assert told["changes"] == [{"field": "modules.routing.mode", "from": None, "to": "off"}]
    assert "no field differs" in autoopt("config", "diff", "acme", "2", "2")
    autoopt("tenants", "add", "new")
    assert "nothing was saved before version 1" in autoopt("config", "diff", "new", status=2)


def test_models_are_compared_by_name_and_a_key_among_them_is_not_shown() -> None:
    before = {"candidate_lms": [{"model": "openai/a", "api_key_env": "sk-pasted"}, {"api_key_env": "sk-nameless"}]}
    changes = changed_fields(before, {"candidate_lms": [{"model": "openai/a", "api_key_env": "A_API_KEY"}]})
    assert [change.field for change in changes] == ["candidate_lms.1.api_key_env", "candidate_lms.openai/a.api_key_env"]
    assert not [change for change in changes if "sk-" in change.display(change.before)]


def test_agents_are_compared_by_name() -> None:
    before = {"agents": [{"name": "a", "description": "x"}, {"name": "b", "description": "y"}]}
    after = {"agents": [{"name": "b", "description": "z"}]}
    assert [(c.field, c.before, c.after) for c in changed_fields(before, after)] == [
        ("agents.a.description", "x", None),
        ("agents.b.description", "y", "z"),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(JSON, JSON)
def test_a_difference_is_told_from_both_sides_alike_and_there_is_none_to_oneself(a: object, b: object) -> None:
    assert changed_fields(a, a) == []
    assert [(c.field, c.before, c.after) for c in changed_fields(a, b)] == [
        (c.field, c.after, c.before) for c in changed_fields(b, a)
    ]


def test_what_may_be_a_key_is_not_told_in_a_difference() -> None:
    (change,) = changed_fields({"lm": {"api_key_env": "sk-secret"}}, {"lm": {"api_key_env": "MY_API_KEY"}})
    assert (change.display(change.before), change.display(change.after)) == (
        "not shown, because it may be a secret",
        '"MY_API_KEY"',
    )


def test_an_earlier_version_is_saved_again_as_a_new_one(acme: TenantConfigStore) -> None:
    said = autoopt("config", "revert", "acme", "1")
    assert "version 3, the same as 1" in said
    assert "budget.max_lm_calls: 2000 -> 6000" in said
    assert acme.history("acme")[-1].document == acme.history("acme")[0].document


def test_a_version_that_is_not_valid_any_more_is_refused_by_name(acme: TenantConfigStore) -> None:
    acme.write("acme", {"tenant_id": "acme", "gone_field": 1})
    acme.write("acme", {"tenant_id": "acme", "modules": {"gone": {}}})
    acme.write("acme", {"tenant_id": "acme"})
    assert "version 3: unknown field 'gone_field'" in autoopt("config", "revert", "acme", "3", status=2)
    assert "unknown module 'gone'" in autoopt("config", "revert", "acme", "4", status=2)
    assert "gone_field: none -> 1" in autoopt("config", "diff", "acme", "2", "3")
    assert len(acme.history("acme")) == 5


def test_what_is_edited_is_saved_and_shown(acme: TenantConfigStore, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    code = f"pathlib.Path({str(seen)!r}).write_text(oct(f.stat().st_mode) + text); text = text.replace('2000', '77')"
    said = autoopt("config", "edit", "acme", env=editor(code))
    assert "configuration version 3" in said
    assert "budget.max_lm_calls: 2000 -> 77" in said
    assert read_config(acme, "acme")[0].budget.max_lm_calls == 77
    assert seen.read_text().startswith(oct(stat.S_IFREG | 0o600))
    assert "# min_samples_for_optimization: 100\n" in seen.read_text()
    assert "nothing changed" in autoopt("config", "edit", "acme", env=editor("pass"))


def test_a_deleted_line_follows_the_default_again(acme: TenantConfigStore) -> None:
    autoopt("config", "edit", "acme", env=editor("text = text.replace('budget:\\n  max_lm_calls: 2000\\n', '')"))
    assert read_config(acme, "acme")[0].budget.max_lm_calls == 6000


def test_a_configuration_that_is_not_valid_can_be_mended(acme: TenantConfigStore) -> None:
    acme.write("acme", {"tenant_id": "acme", "gone_field": 1})
    autoopt("config", "edit", "acme", env=editor("text = text.replace('gone_field: 1', '')"))
    assert read_config(acme, "acme")[1] == 4


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("text = text.replace('2000', 'many')", "budget.max_lm_calls"),
        ("text += '\\nbudget: {}'", "'budget' appears twice"),
        ("text += '\\n}'", "line "),
        ("text = text.replace('tenant_id: acme', 'tenant_id: other')", "tenant_id cannot be changed"),
        ("text += '\\nmodules: {ruting: {}}'", "did you mean 'routing'"),
    ],
)
def test_what_cannot_be_saved_is_kept_in_a_file_that_the_error_names(
    acme: TenantConfigStore, code: str, words: str
) -> None:
    error = autoopt("config", "edit", "acme", status=2, env=editor(code))
    assert words in error
    assert error.count("\n") == 1
    kept = Path(error.strip().rpartition("your text is kept in ")[2])
    assert "tenant_id: " in kept.read_text()
    kept.unlink()
    assert len(acme.history("acme")) == 2


def test_an_edit_that_somebody_else_overtook_is_refused_and_kept(acme: TenantConfigStore, home: Path) -> None:
    overtake = (
        "from autoopt_pipeline.tenants.store import open_config_store as o; "
        f"o('sqlite:///{home}/.autoopt/config.db').write('acme', dict(tenant_id='acme')); "
        "text = text.replace('2000', '77')"
    )
    error = autoopt("config", "edit", "acme", status=2, env=editor(overtake))
    assert "the configuration is at version 3, not 2" in error
    kept = Path(error.strip().rpartition("your text is kept in ")[2])
    assert "max_lm_calls: 77" in kept.read_text()
    kept.unlink()


def test_an_interrupted_edit_is_kept(acme: TenantConfigStore) -> None:
    interrupted = "f.write_text(text + '# mine'); import os, signal; os.kill(os.getppid(), signal.SIGINT); sys.exit()"
    done = subprocess.run(
        [Path(sys.executable).parent / "autoopt", "config", "edit", "acme"],
        env=os.environ | editor(interrupted),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    kept = Path("".join(done.stdout.split("your text is kept in ")[1].split()))
    assert kept.read_text().endswith("# mine")
    kept.unlink()
    assert len(acme.history("acme")) == 2


@pytest.mark.parametrize("broken", ["false", "/nonexistent/editor", "'unbalanced"])
def test_an_editor_that_fails_changes_nothing(acme: TenantConfigStore, broken: str) -> None:
    error = autoopt("config", "edit", "acme", status=2, env={"VISUAL": broken})
    assert "set VISUAL or EDITOR" in error
    assert "kept" not in error
    assert len(acme.history("acme")) == 2


@given(st.integers(1, 10**12), st.text(max_size=20), st.sampled_from(["off", "auto"]))
def test_a_text_that_is_not_touched_means_the_same_configuration(least: int, words: str, mode: str) -> None:
    config = RoutingConfigUnified.model_validate(
        {
            "tenant_id": "a",
            "min_samples_for_optimization": least,
            "agents": [{"name": "no", "description": words}],
            "modules": {"routing": {"mode": mode}},
        }
    )
    document = chosen_fields(config)
    stored = StoredConfig("a", 1, NEVER, json.dumps(document))
    read = from_text(as_text(stored), stored)
    assert chosen_fields(read) == document


def test_the_history_is_a_document_too(acme: TenantConfigStore) -> None:
    told = json.loads(autoopt("config", "history", "acme", "--json"))
    assert [(entry["version"], entry["state"]) for entry in told["versions"]] == [(1, "saved"), (2, "saved")]
    assert all(entry["written_at"].endswith("+00:00") for entry in told["versions"])


def test_a_text_of_another_tenant_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="tenant_id cannot be changed"):
        from_text("tenant_id: b", StoredConfig("a", 1, NEVER, '{"tenant_id": "a"}'))


@pytest.mark.parametrize("field", ["lm.model", "teacher_lm.model"])
def test_a_model_that_no_client_can_be_sent_to_is_refused_when_it_is_set(acme: TenantConfigStore, field: str) -> None:
    for name in ("nonsense", "nonsense/x", "openai/"):
        error = autoopt("config", "set", "acme", f"{field}={name}", status=2)
        assert f"{field}: language model {name}: " in error
        assert "-> name the model as DSPy does, e.g. openai/gpt-4o-mini" in error
    assert len(acme.history("acme")) == 2
    for name in ("openai/gpt-4o-mini", "huggingface/some", "stand-in"):
        autoopt("config", "set", "acme", f"{field}={name}")
    assert len(acme.history("acme")) == 5


def test_a_model_that_is_stored_already_is_in_the_way_of_no_other_change(acme: TenantConfigStore) -> None:
    document = acme.history("acme")[-1].document
    assert isinstance(document, dict)
    acme.write("acme", {**document, "lm": {"model": "gone/model"}})
    assert "version 4" in autoopt("config", "set", "acme", "budget.max_lm_calls=2000")
    assert "teacher_lm.model: language model gone/model" in autoopt(
        "config", "set", "acme", "teacher_lm.model=gone/model", status=2
    )


def test_a_field_that_is_given_twice_is_refused(acme: TenantConfigStore) -> None:
    twice = ("budget.max_lm_calls=1", "mode=propose", "budget.max_lm_calls=2")
    assert "budget.max_lm_calls is given twice -> give one value" in autoopt("config", "set", "acme", *twice, status=2)
    assert len(acme.history("acme")) == 2
