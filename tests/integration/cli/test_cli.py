"""`autoopt` as a person types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import AGENTS, AUTOOPT, autoopt, partitions
from tests.support.phoenix_traffic import trace_count
from tests.support.stored_programs import save


@pytest.fixture
def promoted_version(home: Path) -> str:
    artifacts = VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), "acme", "routing")
    version = save(artifacts, "one", tenant="acme")
    artifacts.transition(version, expected=None, actor="t", reason="")
    return version


def test_a_tenant_is_added_listed_and_removed(home: Path) -> None:
    assert "acme added, configuration version 1" in autoopt("tenants", "add", "acme", *AGENTS)
    assert partitions(home) == {"acme"}
    assert "acme" in autoopt("tenants", "list")
    assert "acme removed" in autoopt("tenants", "remove", "acme", "--yes")
    assert partitions(home) == set()
    assert "acme" not in autoopt("tenants", "list")


def test_it_works_from_another_folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(
        [AUTOOPT, "tenants", "add", "acme"], cwd=elsewhere, check=True, capture_output=True, text=True
    )
    assert "acme added" in done.stdout
    again = subprocess.run(
        [AUTOOPT, "tenants", "add", "acme"], cwd=elsewhere, check=False, capture_output=True, text=True
    )
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert partitions(home) == {"acme"}
    assert list(elsewhere.iterdir()) == []


def test_one_field_is_set_and_the_others_stay(home: Path) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    assert "version 2" in autoopt("config", "set", "acme", "min_samples_for_optimization=7", "budget.max_lm_calls=900")
    config = json.loads(autoopt("config", "get", "acme"))
    assert config["min_samples_for_optimization"] == 7
    assert config["budget"]["max_lm_calls"] == 900
    assert len(config["agents"]) == 4
    first = json.loads(autoopt("config", "get", "acme", "--version", "1"))
    assert first["min_samples_for_optimization"] == 100
    told = autoopt("config", "history", "acme")
    assert (told.count("tenant added"), told.count("configuration saved")) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tenants", "add", "a/b"], "invalid tenant id 'a/b'"),
        (["tenants", "add", ""], "invalid tenant id ''"),
        (["tenants", "add", "a,b"], "invalid tenant id 'a,b'"),
        (["tenants", "add", "a\nb"], "invalid tenant id 'a\\nb'"),
        (["tenants", "add", ".."], "invalid tenant id '..'"),
        (["tenants", "add", "x" * 200], "invalid tenant id 'xxx"),
        (["tenants", "add", "acme"], "tenant acme exists already"),
        (["tenants", "remove", "nobody"], "tenant nobody has no configuration"),
        (["config", "get", "nobody"], "tenant nobody has no configuration"),
        (["config", "get", "acme", "--version", "9"], "no configuration version 9"),
        (["config", "set", "acme", "nonsense"], "'nonsense' is not FIELD=VALUE"),
        (["config", "set", "acme", "min_sample=1"], "did you mean"),
        (["config", "set", "acme", "min_samples_for_optimization=-1"], "has to be 1 or more (got '-1')"),
        (["config", "set", "acme", "modules.ruting.mode=auto"], "unknown module 'ruting'"),
        (["versions", "acme", "ruting"], "unknown module 'ruting' -> did you mean 'routing'?"),
        (["versions", "../acme", "routing"], "invalid tenant id '../acme'"),
        (["promote", "acme", "routing", "../../x"], "does not exist"),
        (["tenants", "import", "missing.json"], "missing.json"),
        (["simulate", "nobody"], "tenant nobody has no configuration"),
        (["status", "nobody"], "tenant nobody has no configuration"),
        (["config", "history", "nobody"], "tenant nobody has no configuration"),
        (["versions", "nobody", "routing"], "tenant nobody has no configuration"),
        (["up", "--phoenix-port", "6119", "--dagster-port", "6119"], "two of the ports 6119, 6119"),
    ],
)
def test_bad_input_is_one_line_with_a_remedy_and_changes_nothing(home: Path, arguments: list[str], words: str) -> None:
    autoopt("tenants", "add", "acme")
    error = autoopt(*arguments, status=2)
    assert words in error
    assert error.startswith("error: ")
    assert " -> " in error
    assert error.count("\n") == 1
    assert partitions(home) == {"acme"}
    assert "configuration saved" not in autoopt("config", "history", "acme")


def test_a_variable_that_the_instance_wants_is_named_where_it_is_not_set(home: Path) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    (home / "dagster.yaml").write_text("storage: {postgres: {postgres_url: {env: DAGSTER_POSTGRES_URL}}}")
    error = autoopt("status", status=2)
    assert "dagster.yaml wants the environment variable DAGSTER_POSTGRES_URL, which is not set -> set it" in error
    assert error.count("\n") == 1


def test_commands_that_need_no_instance_do_not_wait_for_dagster() -> None:
    code = (
        "import sys, autoopt_pipeline.cli.main; print([m for m in ('dagster', 'dspy', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "value", "arguments"),
    [
        ("AUTOOPT_CONFIG_STORE_URL", "redis://127.0.0.1:1/0", ["tenants", "list"]),
        ("AUTOOPT_CONFIG_STORE_URL", "nonsense", ["tenants", "list"]),
        ("AUTOOPT_SETTLING_SECONDS", "soon", ["tenants", "list"]),
        ("AUTOOPT_ARTIFACTS_URL", "nonsense://x", ["versions", "acme", "routing"]),
        ("DAGSTER_HOME", "/nonexistent", ["tenants", "add", "other"]),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(home: Path, name: str, value: str, arguments: list[str]) -> None:
    error = autoopt(*arguments, status=2, env={name: value})
    assert error.startswith("error: ")
    assert name in error
    assert error.count("\n") == 1


def test_phoenix_down_is_told_and_touches_nothing(home: Path) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    down = {"AUTOOPT_PHOENIX_ENDPOINT": "http://127.0.0.1:9"}
    assert "http://127.0.0.1:9 does not answer" in autoopt("simulate", "acme", status=2, env=down)
    assert "http://127.0.0.1:9 does not answer" in autoopt("status", status=2, env=down)


def test_the_seeds_rows_are_imported(home: Path) -> None:
    rows = [
        {"tenant_id": "acme:eu", "version": 2, "config_value": {"tenant_id": "acme:eu", "routing_mode": "tiered"}},
        {"tenant_id": "b", "config_value": {"tenant_id": "b", "optimization_interval_seconds": 0}},
    ]
    Path("rows.json").write_text(json.dumps(rows))
    error = autoopt("tenants", "import", "rows.json", status=2)
    assert "1 of 2 rows were refused" in error
    assert partitions(home) == {"acme:eu"}
    assert "acme:eu" in autoopt("tenants", "list")


def test_traffic_is_sent_and_seen_in_the_status(home: Path, phoenix: Phoenix, tenant: str) -> None:
    here = {"AUTOOPT_PHOENIX_ENDPOINT": phoenix.endpoint, "AUTOOPT_SETTLING_SECONDS": "0"}
    autoopt("tenants", "add", tenant, *AGENTS)
    assert "has no project" in autoopt("status", tenant, env=here)
    assert "30 traces" in autoopt("simulate", tenant, "--traces", "30", env=here)
    assert "30 new traces, 100 needed" in autoopt("status", tenant, env=here)


def test_real_queries_are_played_with_the_tenants_agents_as_labels(home: Path, phoenix: Phoenix, tenant: str) -> None:
    here = {"AUTOOPT_PHOENIX_ENDPOINT": phoenix.endpoint}
    lines = [{"text": f"how do I number {i}", "domain": ["bank", "home"][i % 2]} for i in range(20)]
    Path("queries.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    autoopt("tenants", "add", tenant, "--agent", "bank", "--agent", "home")
    fields = ["--query-field", "text", "--label-field", "domain"]
    assert "20 traces" in autoopt("simulate", tenant, "--queries", "queries.jsonl", *fields, env=here)
    wrong = autoopt("simulate", tenant, "--queries", "queries.jsonl", status=2, env=here)
    assert "line 1" in wrong
    assert "--query-field" in wrong
    Path("queries.jsonl").write_text(json.dumps({"query": "x", "agent": "moon"}))
    assert "'moon' is no agent" in autoopt("simulate", tenant, "--queries", "queries.jsonl", status=2, env=here)
    assert trace_count(phoenix, tenant) == 20


@pytest.mark.parametrize("taken", ["dagster.yaml", "workspace.yaml", "autoopt.env"])
def test_init_overwrites_nothing(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    assert f"{tmp_path / taken} exists already -> name a new folder" in autoopt("init", str(tmp_path), status=2)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(taken, "mine")]


def test_init_leaves_nothing_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written: Not a directory" in autoopt("init", str(tmp_path / "file" / "home"), status=2)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_demo_empties_no_folder_of_yours(home: Path) -> None:
    assert "is not empty" in autoopt("demo", "--home", str(home), status=2)
    assert (home / "dagster.yaml").exists()


def test_a_value_that_looks_like_markup_does_not_hide_the_others(home: Path, phoenix: Phoenix) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    store = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")
    store.write("odd", {"tenant_id": "odd", "mode": "[/]", "[red]": 1})
    for command, status in ((["tenants", "list"], 0), (["status"], 2)):
        listed = autoopt(*command, status=status, env={"AUTOOPT_PHOENIX_ENDPOINT": phoenix.endpoint})
        assert "acme" in listed
        assert "[red]" in listed


def test_in_a_folder_without_an_instance_nothing_is_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    for command in (["tenants", "add", "acme"], ["versions", "acme", "routing"], ["status"], ["tenants", "list"]):
        assert "set DAGSTER_HOME" in autoopt(*command, status=2)
    assert list(tmp_path.iterdir()) == []


def test_a_key_in_the_wrong_place_is_not_repeated(home: Path) -> None:
    autoopt("tenants", "add", "acme")
    error = autoopt("config", "set", "acme", 'lm={"model": "x", "api_key_env": "sk-abc123"}', status=2)
    assert "sk-abc123" not in error
    assert "give the name of an environment variable" in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no queries"),
        ('{"query": " ", "agent": "search_agent"}', "line 1: 'query' is no text"),
        ('{"query": 5, "agent": "search_agent"}', "line 1: 'query' is no text"),
        ("{oops", "line 1"),
    ],
)
def test_a_bad_file_of_queries_is_refused_with_its_line(home: Path, content: str, words: str) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    Path("queries.jsonl").write_text(content)
    assert words in autoopt("simulate", "acme", "--queries", "queries.jsonl", status=2)


@pytest.mark.parametrize("port", ["99999", "0", "abc"])
def test_a_port_that_is_none_is_refused(home: Path, port: str) -> None:
    error = autoopt("up", "--phoenix-port", port, status=2)
    assert "--phoenix-port" in error
    assert "Traceback" not in error


def test_a_version_is_shown_whole_even_in_a_narrow_terminal(home: Path, promoted_version: str) -> None:
    env = {**os.environ, "COLUMNS": "60", "NO_COLOR": "1"}
    done = subprocess.run([AUTOOPT, "versions", "acme", "routing"], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.count(promoted_version) == 2


def test_a_taken_port_is_named(phoenix: Phoenix) -> None:
    port = phoenix.endpoint.rpartition(":")[2]
    error = autoopt("up", "--phoenix-port", port, status=2)
    assert f"port {port} for Phoenix is taken" in error
    assert "PHOENIX_PORT" in error
