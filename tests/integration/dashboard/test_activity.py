"""Everything that anybody did is on the page of activities, with who did it, a bounded page at a time."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from autoopt_pipeline.dashboard.auth import Role
from autoopt_pipeline.registry.audit_log import AUDIT_LOG_FOLDER, AuditEntry, recent_entries, record_action
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.timeline import newest_of
from tests.support.command_line import AGENTS, autoopt
from tests.support.dashboard_client import everybody, send, visiting
from tests.support.stored_programs import made_program
from tests.support.stored_programs import store as stored_program

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> TenantConfigStore:
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("LOGNAME", "ada")
    return open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")


def artifacts(home: Path, tenant: str, module: str = "routing") -> VersionStore:
    return VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), tenant, module)


def rows_of(page: str) -> list[tuple[str, ...]]:
    """What, tenant, module, told and by whom, of each row below "Everything else"."""
    rows = re.findall(r"<tr.*?</tr>", page[page.index('id="others"') :], re.DOTALL)[1:]
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [tuple(" ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in row[1:]) for row in cells]


def all_pages(browser: TestClient) -> Iterator[list[tuple[str, ...]]]:
    path = "/activity"
    while True:
        page = browser.get(path).text
        yield rows_of(page)
        older = re.search(r'id="older"[^>]*href="([^"]+)"', page)
        if older is None:
            return
        path = unescape(older[1])


def test_all_that_people_do_is_told_with_who_did_it(home: Path, store: TenantConfigStore, tmp_path: Path) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    autoopt("config", "set", "acme", "min_samples_for_optimization=7")
    file = tmp_path / "import.jsonl"
    file.write_text(json.dumps({"tenant_id": "globex"}))
    autoopt("tenants", "import", str(file))
    programs = artifacts(home, "acme")
    one, two, three = (
        stored_program(programs, made_program("acme", demos=[demo]), n, changes={"verdict": "awaiting_approval"})
        for n, demo in enumerate(["a", "b", "c"])
    )
    module = "/tenants/acme/modules/routing"
    with visiting(home) as browser:
        send(browser, f"{module}/approve?version={one}", version=one, reason="looks right")
        autoopt("promote", "acme", "routing", two, "--reason", "better", "--no-monitor")
        autoopt("rollback", "acme", "routing", "--reason", "it annoys people")
        autoopt("promote", "acme", "routing", two, "--reason", "they got used to it", "--no-monitor")
        send(browser, f"{module}/decline?version={three}", version=three, reason="too long")
        send(browser, "/tenants/acme/configuration/remove")
        autoopt("artifacts", "delete", "acme", "--yes")
        send(browser, "/tenants/acme/configuration/revert?version=2")
        told = rows_of(browser.get("/activity").text)
    assert told == [
        ("tenant added", "acme", "", "configuration version 5", "tester"),
        ("artifacts deleted", "acme", "", "configuration version 4", "ada"),
        ("tenant removed", "acme", "", "configuration version 3", "tester"),
        ("declined", "acme", "routing", f"{three}: too long", "tester"),
        ("promoted", "acme", "routing", f"{one} → {two}: they got used to it", "ada"),
        ("rolled back", "acme", "routing", f"{two} → {one}: it annoys people", "ada"),
        ("approved", "acme", "routing", f"{one} → {two}: better", "ada"),
        (
            "approved",
            "acme",
            "routing",
            f"baseline → {one}, with 10 % of requests for baseline: looks right",
            "tester",
        ),
        ("tenant added", "globex", "", "configuration version 1", "import by ada"),
        ("configuration saved", "acme", "", "configuration version 2", "ada"),
        ("tenant added", "acme", "", "configuration version 1", "ada"),
    ]
    said = json.loads(autoopt("config", "history", "acme", "--json"))["versions"]
    assert [each["actor"] for each in said] == ["ada", "ada", "tester", "ada", "tester"]


def test_pages_go_back_to_the_first_thing_that_happened_and_tell_each_once(
    home: Path, store: TenantConfigStore
) -> None:
    for number in range(70):
        write_config(store, RoutingConfigUnified(tenant_id=f"t{number:02}"), actor="ada")
        artifacts(home, f"t{number:02}").record_action("declined", actor="marta", text=f"v{number}")
    with visiting(home) as browser:
        pages = list(all_pages(browser))
        assert "Failures" not in browser.get("/activity?before=2026-01-01T00:00:00%2B00:00").text
        assert "Failures" in browser.get("/activity?before=yesterday").text
    assert [len(page) for page in pages] == [60, 60, 20]
    told = [(row[0], row[1]) for page in pages for row in page]
    assert told == [(what, f"t{number:02}") for number in reversed(range(70)) for what in ("declined", "tenant added")]


def test_who_sees_some_tenants_sees_what_happened_to_those_alone(home: Path, store: TenantConfigStore) -> None:
    for tenant in ("acme", "globex:eu", "globex:us", "globex:gone"):
        write_config(store, RoutingConfigUnified(tenant_id=tenant), actor="ada")
        artifacts(home, tenant).record_action("declined", actor="marta", text="v")
    store.write("globex:gone", None, actor="ada")
    with visiting(home, everybody(Role.VIEWER, ["globex:*"])) as browser:
        rows = rows_of(browser.get("/activity").text)
        page = browser.get("/activity").text
    assert [(row[0], row[1]) for row in rows] == [
        ("tenant removed", "globex:gone"),
        *((what, f"globex:{each}") for each in ("gone", "us", "eu") for what in ("declined", "tenant added")),
    ]
    assert "acme" not in page


class Counting(ObjectStore):
    """Real files, with a count of how often they are asked."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.listed, self.read_paths = 0, 0

    def names(self, folder: str) -> list[str]:
        self.listed += 1
        return super().names(folder)

    def read_many(self, paths):
        self.read_paths += len(paths)
        return super().read_many(paths)


def old_act(files: ObjectStore, at: datetime, tenant: str) -> None:
    act = AuditEntry(at=at, actor="ada", what="declined", tenant_id=tenant, module="routing", text="v")
    name = f"{AUDIT_LOG_FOLDER}/{at:%Y-%m-%d}/{at:%H%M%S%f}-{tenant}.json"
    files.create(name, act.model_dump_json().encode())


def test_a_page_of_acts_reads_no_more_than_it_shows_however_many_there_are(tmp_path: Path) -> None:
    files = Counting(str(tmp_path))
    for day in range(100):
        for number in range(10):
            old_act(files, NOW - timedelta(days=day, minutes=number), f"t{number}")
    page = recent_entries(files, lambda tenant: True, limit=25)
    assert len(page.items) == 25
    assert (files.listed, files.read_paths) == (1 + 3, 25)
    files.listed = files.read_paths = 0
    # Of one tenant in ten, a page is as long as a month of days with acts.
    page = recent_entries(files, lambda tenant: tenant == "t7", limit=60)
    assert len(page.items) == 31
    assert (files.listed, files.read_paths) == (1 + 31, 31)
    assert page.reaches
    seen = len(page.items)
    while page.reaches:
        page = recent_entries(files, lambda tenant: tenant == "t7", before=page.reaches, limit=60)
        seen += len(page.items)
    assert seen == 100


def test_acts_of_the_same_moment_and_what_is_no_act_cost_nobody_anything(tmp_path: Path) -> None:
    files = ObjectStore(str(tmp_path))
    for _ in range(20):
        record_action(files, actor="ada", what="declined", tenant_id="org:a b", module="routing", text="x")
    old_act(files, NOW, "acme")
    for name in ("nonsense/x.json", "2026-05-04/x.json", "2026-05-04/999999999999-acme.json", "2026-13-01/x.json"):
        files.create(f"{AUDIT_LOG_FOLDER}/{name}", b"{")
    files.replace(f"{AUDIT_LOG_FOLDER}/2026-05-04/010101000000-acme.json", b"[]")
    found = recent_entries(files, lambda tenant: True, limit=100).items
    assert len({each.at for each in found}) == len(found) == 21


def test_what_was_done_is_done_where_it_cannot_be_entered(home: Path, store: TenantConfigStore) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    programs = artifacts(home, "acme")
    version = stored_program(programs, made_program("acme"))
    (home / ".autoopt" / "artifacts" / AUDIT_LOG_FOLDER).write_text("somebody put a file here")
    said = autoopt("promote", "acme", "routing", version)
    assert f"baseline -> {version}" in said
    assert "note: the dashboard's Activity does not list this" in said
    active = programs.active()
    assert active
    assert active.version == version


class At:
    def __init__(self, number: int) -> None:
        self.at = NOW - timedelta(seconds=number)
        self.number = number


@given(st.integers(0, 50), st.integers(1, 9), st.integers(1, 7), st.integers(1, 20))
def test_however_little_is_wanted_each_is_found_once(things: int, every: int, limit: int, most: int) -> None:
    all_of_them = [At(number) for number in range(things)]

    def read(before: datetime | None, count: int) -> list[At]:
        return [each for each in all_of_them if before is None or each.at < before][:count]

    found, before = [], None
    for _ in count():
        stretch = newest_of(read, lambda each: each.number % every == 0, before=before, limit=limit, most=most)
        assert len(stretch.items) < 2 * limit
        found += [each.number for each in stretch.items]
        before = stretch.reaches
        if before is None:
            break
    assert found == list(range(0, things, every))
