"""`autoopt tenants` as a person types it."""

import json
import os
import pty
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import ConfigConflict
from autoopt_pipeline.tenants.config import RoutingConfigUnified, chosen_fields
from autoopt_pipeline.tenants.export import export_rows
from autoopt_pipeline.tenants.lifecycle import add_tenant, new_tenant
from autoopt_pipeline.tenants.seed_import import read_rows
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.tenants.stores.base import NEVER, StoredConfig, TenantConfigStore
from tests.support.command_line import AGENTS, AUTOOPT, autoopt, partitions

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "enable_auto_optimization": st.booleans(),
        "min_samples_for_optimization": st.integers(1, 10**6),
        "agents": st.lists(
            st.fixed_dictionaries({"name": st.from_regex(r"[A-Za-z0-9]{1,5}", fullmatch=True), "description": TEXT}),
            max_size=3,
            unique_by=lambda agent: agent["name"],
        ),
        "modules": st.dictionaries(
            st.sampled_from(["routing", "modality", "workflow"]),
            st.fixed_dictionaries({}, optional={"mode": st.sampled_from(["off", "observe", "propose", "auto"])}),
        ),
        "lm": st.none() | st.fixed_dictionaries({"model": TEXT.filter(bool).map("openai/{}".format)}),
        "mode": st.sampled_from(["off", "observe", "propose", "auto"]),
    },
)


@pytest.fixture
def store(home: Path) -> TenantConfigStore:
    return open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")


@given(st.lists(CONFIGS, max_size=4))
def test_what_is_exported_is_imported_the_same(documents: list[dict]) -> None:
    configs = [
        RoutingConfigUnified.model_validate({"tenant_id": f"t{i}", **document}) for i, document in enumerate(documents)
    ]
    entries = [StoredConfig(config.tenant_id, 1, NEVER, json.dumps(chosen_fields(config))) for config in configs]
    lines, broken = export_rows(entries)
    imported, refused = read_rows("\n".join(lines)) if lines else ([], [])
    assert (broken, refused) == ([], [])
    assert [chosen_fields(one.config) for one in imported] == [chosen_fields(config) for config in configs]
    assert all(one.ignored == () for one in imported)


def test_an_export_is_a_new_file_or_goes_to_stdout(home: Path, store: TenantConfigStore) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    autoopt("tenants", "add", "b:c")
    assert "2 configurations exported" in autoopt("tenants", "export", "all.jsonl")
    assert autoopt("tenants", "export") == Path("all.jsonl").read_text()
    assert "name a new file" in autoopt("tenants", "export", "all.jsonl", status=2)
    autoopt("tenants", "remove", "acme", "--yes")
    autoopt("tenants", "import", "all.jsonl")
    assert store.current()["acme"].document == store.history("acme")[0].document


def test_an_export_names_the_configurations_that_it_leaves_out(home: Path, store: TenantConfigStore) -> None:
    autoopt("tenants", "add", "acme")
    store.write("odd", {"tenant_id": "odd", "mode": "maybe"})
    error = autoopt("tenants", "export", "all.jsonl", status=2)
    assert "1 of 2 configurations are not valid" in error
    assert "tenant odd" in error
    assert json.loads(Path("all.jsonl").read_text())["tenant_id"] == "acme"


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(home: Path, store: TenantConfigStore) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    autoopt("tenants", "export", "all.jsonl")
    changed = Path("all.jsonl").read_text().replace('"acme"', '"acme", "mode": "propose", "odd": 1')
    Path("all.jsonl").write_text(changed + '{"tenant_id": "new"}\n{"tenant_id": "a/b"}\n')
    before = store.current()
    error = autoopt("tenants", "import", "all.jsonl", "--dry-run", status=2)
    assert "1 of 3 rows were refused" in error
    Path("all.jsonl").write_text(changed + '{"tenant_id": "new"}\n')
    said = autoopt("tenants", "import", "all.jsonl", "--dry-run")
    assert "acme would be saved, with 1 fields changed; ignored: odd" in said
    assert 'mode: "auto" -> "propose"' in said
    assert "new would be added" in said
    assert store.current() == before
    assert partitions(home) == {"acme"}


def test_the_list_is_a_document_too(home: Path, store: TenantConfigStore) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    store.write("odd", {"tenant_id": "odd", "mode": "maybe"})
    acme, odd = json.loads(autoopt("tenants", "list", "--json"))["tenants"]
    assert (acme["tenant"], acme["version"], acme["error"]) == ("acme", 1, None)
    assert acme["config"]["min_samples_for_optimization"] == 100
    assert odd["config"] is None
    assert "mode" in odd["error"]


def test_of_those_who_add_a_tenant_at_once_one_does(store: TenantConfigStore) -> None:
    def add(n: int) -> bool:
        try:
            return add_tenant(store, new_tenant("acme", [f"agent{n}"], where="test")) == 1
        except ConfigConflict:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(add, range(4))) == 1
    assert len(store.history("acme")) == 1


def test_what_stays_of_a_removed_tenant_is_said(home: Path) -> None:
    autoopt("tenants", "add", "acme")
    said = autoopt("tenants", "remove", "acme", "--yes")
    assert "autoopt artifacts delete acme" in said
    assert "traces in Phoenix" in said


@pytest.mark.parametrize(("option", "answer", "left"), [([], "n", True), ([], "y", False), (["--yes"], "", False)])
def test_a_person_at_a_terminal_is_asked_before_a_tenant_is_removed(
    home: Path, store: TenantConfigStore, option: list[str], answer: str, left: bool
) -> None:
    autoopt("tenants", "add", "acme")
    master, terminal = pty.openpty()
    os.write(master, f"{answer}\n".encode())
    command = [AUTOOPT, "tenants", "remove", "acme", *option]
    done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, check=False)
    os.close(master)
    os.close(terminal)
    assert ("Remove acme, whose programs" in done.stdout + done.stderr) is not bool(option)
    assert (done.returncode != 0) is left
    assert ("acme" in store.current()) is left


@pytest.mark.parametrize("command", [("tenants", "list"), ("tenants", "export"), ("status",)])
def test_a_home_that_is_mistyped_is_named_and_not_made(home: Path, command: tuple[str, ...]) -> None:
    typo = home / "typo" / "home"
    assert f"there are no tenants in sqlite:///{typo}" in autoopt(*command, env={"AUTOOPT_HOME": str(typo)})
    assert not typo.parent.exists()


@pytest.mark.parametrize(
    "command", ["config get acme", "config history acme", "why acme routing", "versions acme routing"]
)
def test_what_asks_for_a_tenant_makes_no_store(home: Path, command: str) -> None:
    error = autoopt(*command.split(), status=2, env={"AUTOOPT_HOME": str(home / "typo")})
    assert "tenant acme has no configuration, and there are no others" in error
    assert not (home / "typo").exists()


def test_a_tenant_that_is_mistyped_is_answered_with_the_nearest(home: Path) -> None:
    autoopt("tenants", "add", "globex:support")
    for command in (("config", "get"), ("config", "set"), ("tenants", "remove"), ("traces", "stats"), ("status",)):
        change = ["enable_auto_optimization=false"] if command[1:] == ("set",) else []
        error = autoopt(*command, "Globex:suport", *change, status=2)
        assert "tenant Globex:suport has no configuration -> did you mean 'globex:support'?" in error


def test_tenants_that_differ_in_capital_letters_only_are_refused(home: Path, store: TenantConfigStore) -> None:
    autoopt("tenants", "add", "acme")
    error = autoopt("tenants", "add", "Acme", status=2)
    assert "tenant Acme differs from acme in capital letters only -> use acme, or choose another id" in error
    rows = [{"tenant_id": name} for name in ("acme", "ACME", "new", "New")]
    (home / "rows.json").write_text(json.dumps(rows))
    told = autoopt("tenants", "import", str(home / "rows.json"), "--dry-run", status=2)
    assert "2 of 4 rows were refused" in told
    autoopt("tenants", "import", str(home / "rows.json"), status=2)
    assert set(store.current()) == {"acme", "new"}


def test_a_removed_tenant_is_not_brought_back_beside_one_of_the_same_letters(
    home: Path, store: TenantConfigStore
) -> None:
    autoopt("tenants", "add", "acme")
    autoopt("tenants", "remove", "acme", "--yes")
    autoopt("tenants", "add", "Acme")
    assert "differs from Acme" in autoopt("config", "revert", "acme", "1", status=2)
    assert set(store.current()) == {"Acme"}


def test_a_row_with_a_model_that_nobody_knows_is_refused(home: Path, store: TenantConfigStore) -> None:
    (home / "rows.json").write_text(json.dumps([{"tenant_id": "a", "lm": {"model": "nonsense"}}, {"tenant_id": "b"}]))
    autoopt("tenants", "import", str(home / "rows.json"), status=2)
    assert set(store.current()) == {"b"}
