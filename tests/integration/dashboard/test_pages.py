"""The dashboard's pages on a real instance, real stores and a real Phoenix."""

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import dagster as dg
import pytest

from autoopt_pipeline.dashboard.status_cache import StatusCache, StatusSnapshot
from autoopt_pipeline.devtools.processes import free_port
from autoopt_pipeline.errors import ConfigStoreUnavailable
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.status.module_status import ModuleStatus
from autoopt_pipeline.status.score_trend import read_trends, sparkline
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import autoopt
from tests.support.dashboard_client import send, text_of, visiting
from tests.support.stored_programs import FAST, SLOW, made_program
from tests.support.stored_programs import store as stored_program
from tests.support.tenant_history import configure, failed_run

HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>"


@pytest.fixture
def store(home: Path, phoenix: Phoenix, monkeypatch: pytest.MonkeyPatch) -> TenantConfigStore:
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    return open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")


def artifacts(home: Path, tenant: str, module: str = "routing") -> VersionStore:
    return VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), tenant, module)


def outcome(home: Path, tenant: str, module: str = "routing", **metadata: Any) -> None:
    told = {"window_end": dg.MetadataValue.timestamp(datetime.now(UTC)), **metadata}
    with open_instance(home) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization(module, partition=tenant, metadata=told))


def test_an_empty_system_says_how_to_begin(home: Path, store: TenantConfigStore) -> None:
    with visiting(home) as browser:
        empty = browser.get("/")
        assert "No tenant yet" in text_of(empty)
        assert 'data-copies="autoopt simulate acme --traces 600"' in empty.text
        assert "No run has failed" in text_of(browser.get("/activity"))


def test_the_overview_says_the_same_as_status(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant)
    with open_instance(home) as instance:
        failed_run(instance, tenant, ["modality"])
    with visiting(home) as browser:
        page = text_of(browser.get("/"))
        found = text_of(browser.get(f"/?text={tenant[:6]}&health=failing"))
    told = autoopt("status", tenant)
    assert "backing_off" in told
    assert f"failing 1 failed in a row {tenant} modality" in page
    assert f"collecting data {tenant} routing" in page
    assert f"{tenant} modality" in found
    assert f"{tenant} routing" not in found


def test_the_overview_adds_up_the_week_and_names_what_needs_a_person(
    home: Path, store: TenantConfigStore, tenant: str
) -> None:
    configure(store, tenant)
    version = stored_program(
        artifacts(home, tenant), made_program(tenant, demos=["find it"]), changes={"verdict": "awaiting_approval"}
    )
    outcome(home, tenant, verdict="promoted", gain=0.1, lm_calls=700, lm_tokens=2_500_000, lm_dollars=1.5)
    outcome(
        home, tenant, verdict="awaiting_approval", version=version, lm_calls=300, lm_tokens=500_000, lm_dollars=0.25
    )
    with visiting(home) as browser:
        page = browser.get("/")
    assert f"{tenant} / routing: Approve or decline what was found" in text_of(page)
    assert f"/tenants/{tenant}/modules/routing/approve?version={version}" in page.text
    assert "Promotions 1 Mean gain +10.0 points" in text_of(page)
    assert "Cost $1.75 1,000 calls, 3.0 M tokens" in text_of(page)


def test_a_modules_page_tells_the_story_that_why_tells(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant)
    gate: dict[str, Any] = {"alpha": 0.019, "gain": 0.3, "fixed": 32, "broken": 2, "cases": 100, "reviews": 100}
    version = stored_program(
        artifacts(home, tenant),
        made_program(tenant, demos=["find it"]),
        active=True,
        changes={"gate": gate, "tried": [{"optimizer": "coverage-16", "dev_score": 0.7, "judged_on": 40}]},
    )
    outcome(
        home,
        tenant,
        verdict="promoted",
        reason="proven better",
        version=version,
        incumbent_score=0.3,
        candidate_score=0.6,
        **gate,
    )
    short_name = version.rpartition("-")[2]
    told = [line.split(None, 1)[1] for line in autoopt("why", tenant, "routing").splitlines() if "serves" in line]
    with visiting(home) as browser:
        page = browser.get(f"/tenants/{tenant}/modules/routing")
        asked = text_of(browser.get(f"/why?tenant={tenant}"))
    assert "proven better; score 30.0 → 60.0 %" in page.text
    serves = told[0].split("; since")[0].replace(version, f"{short_name} ")
    assert serves in text_of(page)
    assert serves in asked
    assert "promoted: 60.0 % of 100 reviewed traces (50.2 to 69.1 %)" in page.text
    assert "+30.0 points 95 %: +20.2 to +39.8" in text_of(page)
    assert "On 100 held-out traces it fixed 32 and broke 2." in text_of(page)
    assert "coverage-16 70.0 % of 40" in text_of(page)


def test_a_version_is_told_with_its_differences_and_its_report(
    home: Path, store: TenantConfigStore, tenant: str
) -> None:
    configure(store, tenant)
    programs = artifacts(home, tenant)
    one = stored_program(programs, made_program(tenant, demos=["find it"]), 1, active=True)
    two = stored_program(
        programs,
        made_program(tenant, demos=["sum it up"], instructions={"decide": "Think twice."}),
        2,
        active=True,
        changes={"costs": {"incumbent": SLOW, "candidate": FAST}},
    )
    outcome(
        home,
        tenant,
        verdict="promoted",
        reason="r",
        version=two,
        report="**promoted**\n\n| a | b |\n|---|---|\n| 1 | 2 |",
    )
    with visiting(home) as browser:
        page = text_of(browser.get(f"/tenants/{tenant}/modules/routing/versions/{two}?against={one}"))
        module = text_of(browser.get(f"/tenants/{tenant}/modules/routing"))
        wrong = browser.get(f"/tenants/{tenant}/modules/routing/versions/{two[:-2]}xx")
    assert "new: Think twice." in page
    after, before = "312 tokens, about $0.00012, 0.4 s (p95 0.9 s)", "2,950 tokens, dollars unknown, 1.2 s (p95 2.5 s)"
    for text in (page, module):
        assert "a decision costs 312 tokens, about $0.00012, and takes 0.4 s" in text
    assert f"{after} before: {before}" in " ".join(module.split())
    assert "dropped: find it" in page
    assert "alpha 0.05" in page
    assert wrong.status_code == 404
    assert two in text_of(wrong)  # the nearest


def test_a_persons_decisions_are_recorded_with_their_reason(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant, rollout={"monitor": False})
    programs = artifacts(home, tenant)
    one = stored_program(programs, made_program(tenant, demos=["a"]), 1, changes={"verdict": "awaiting_approval"})
    two = stored_program(programs, made_program(tenant, demos=["b"]), 2, changes={"verdict": "awaiting_approval"})
    module = f"/tenants/{tenant}/modules/routing"
    with visiting(home) as browser:
        assert f"Approve {two.rpartition('-')[2]}" in text_of(browser.get(module))
        unsaid = send(browser, f"{module}/approve", version=one, reason="  ")
        assert (unsaid.status_code, "Say why" in unsaid.text) == (409, True)
        done = send(browser, f"{module}/approve?version={one}", version=one, reason="looks right")
        assert (done.status_code, done.headers["location"]) == (303, module)
        assert f"baseline -> {one}" in text_of(browser.get(module)).replace("&gt;", ">")
        assert send(browser, f"{module}/decline", version=two, reason="too long").status_code == 303
        assert "Approve" not in text_of(browser.get(module))
        again = send(browser, f"{module}/decline?version={two}", version=two, reason="kept <b>text</b>")
        assert (again.status_code, "kept &lt;b&gt;text&lt;/b&gt;" in again.text) == (409, True)
        assert "it is declined" in text_of(again)
        assert send(browser, f"{module}/roll-back", version="", reason="it was not").status_code == 303
        empty = browser.get(f"{module}/roll-back")
        assert "there is nothing to go back to" in text_of(empty)
    assert [(transition.to_version, transition.actor, transition.reason) for transition in programs.transitions()] == [
        (one, "tester", "looks right"),
        (None, "tester", "it was not"),
    ]
    declined = programs.declined(two)
    assert declined is not None
    assert (declined.actor, declined.reason) == ("tester", "too long")


def row_of(page: str, version: str) -> str:
    """A version's row of the table of versions, as a reader sees it."""
    table = page[page.index('<h2 id="versions">') :]
    cells = table[table.index(f"/versions/{version}") :].partition("</tr>")[0]
    told = " ".join(re.sub(r"<[^>]+>", " ", cells.partition(">")[2]).split())
    return re.sub(r"\d+ s ago", "N s ago", told)


@pytest.mark.parametrize("actor", ["rollout monitor", "marta"])
def test_versions_name_who_did_what_happened_last_to_each(
    home: Path, store: TenantConfigStore, tenant: str, actor: str
) -> None:
    configure(store, tenant)
    programs = artifacts(home, tenant)
    one, two, three = (
        stored_program(programs, made_program(tenant, demos=[demo]), number)
        for number, demo in enumerate(["a", "b", "c"], start=1)
    )
    programs.transition(one, expected=None, actor="root", reason="better")
    programs.transition(two, expected=one, actor="run r2", reason="better still", canary={one: 0.1})
    programs.transition(one, expected=two, actor=actor, reason="errors rose")
    outcome(home, tenant, verdict="promoted", version=two)
    with visiting(home) as browser:
        page = browser.get(f"/tenants/{tenant}/modules/routing").text
        version = text_of(browser.get(f"/tenants/{tenant}/modules/routing/versions/{two}"))
        board = text_of(browser.get(f"/?text={tenant}"))
        asked = text_of(browser.get(f"/why?tenant={tenant}"))
    assert row_of(page, two).startswith(f"{two} rolled back N s ago by {actor} ")
    assert row_of(page, one).startswith(f"{one} active N s ago by {actor} ")
    assert row_of(page, three).startswith(f"{three} made ")
    assert f"by {actor}: errors rose" in version
    assert re.search(rf"{tenant} routing .*rolled back \d+ s ago", board)
    assert "routing up to date now not due" in asked
    said = json.loads(autoopt("versions", tenant, "routing", "--json"))
    assert [(each["last_event"]["what"], each["last_event"]["actor"]) for each in said["versions"]] == [
        ("active", actor),
        ("rolled back", actor),
        ("made", "run r"),
    ]


def test_an_approved_version_is_nowhere_said_to_wait(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant, rollout={"monitor": False})
    programs = artifacts(home, tenant)
    version = stored_program(programs, made_program(tenant), changes={"verdict": "awaiting_approval"})
    outcome(home, tenant, verdict="awaiting_approval", version=version, report="**awaiting_approval**: it is better")
    module = f"/tenants/{tenant}/modules/routing"
    pages = ["/", f"/tenants/{tenant}", module, f"{module}/versions/{version}", f"/why?tenant={tenant}"]
    with visiting(home) as browser:
        assert "awaiting" in browser.get(module).text
        assert send(browser, f"{module}/approve?version={version}", version=version, reason="good").status_code == 303
        for path in pages:
            page = browser.get(path).text
            assert "approved" in page, path
            assert "awaiting" not in page, path


def test_a_decision_that_somebody_overtook_changes_nothing(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant, rollout={"monitor": False})
    programs = artifacts(home, tenant)
    one, two = (stored_program(programs, made_program(tenant, demos=[name]), n) for n, name in enumerate("ab"))
    module = f"/tenants/{tenant}/modules/routing"
    with visiting(home) as browser:
        programs.transition(one, expected=None, actor="vera", reason="first")
        answer = send(browser, f"{module}/approve?version={one}", version=one, reason="mine")
        assert (answer.status_code, "is active already" in text_of(answer)) == (409, True)
        assert "mine" in answer.text
        assert [transition.actor for transition in programs.transitions()] == ["vera"]
        assert browser.get(f"{module}/approve?version={two}").status_code == 200


def test_a_run_that_is_not_due_is_launched_only_for_who_insists(
    home: Path, store: TenantConfigStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(store, tenant)
    monkeypatch.setenv("AUTOOPT_DAGSTER_UI_URL", f"http://127.0.0.1:{free_port()}")
    with visiting(home) as browser:
        path = f"/tenants/{tenant}/modules/routing/run"
        assert "enough new traces : no" in text_of(browser.get(path))
        answer = send(browser, path)
        assert (answer.status_code, "is not due" in text_of(answer)) == (409, True)
        silent = send(browser, path, force="1")
        assert (silent.status_code, "does not answer" in text_of(silent)) == (409, True)


def test_phoenix_that_is_gone_is_told_everywhere_and_hides_nothing_else(
    home: Path, store: TenantConfigStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(store, tenant)
    stored_program(artifacts(home, tenant), made_program(tenant), active=True)
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with visiting(home) as browser:
        for path in ("/", f"/tenants/{tenant}", f"/tenants/{tenant}/modules/routing", f"/why?tenant={tenant}"):
            page = browser.get(path)
            assert page.status_code == 200
            assert "does not answer" in text_of(page)
            assert "error" in text_of(page)


def test_a_store_that_is_gone_is_told_with_what_to_do(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant)
    with visiting(home) as browser:
        assert tenant in browser.get("/").text
        (home / ".autoopt" / "config.db").write_bytes(b"no database at all, and longer than a header" * 40)
        page = browser.get(f"/tenants/{tenant}")
        assert page.status_code == 503
        assert "What to do:" in text_of(page)
        part = browser.get(f"/tenants/{tenant}/modules/routing/story", headers={"hx-request": "true"})
        assert (part.status_code, "<html" in part.text) == (503, False)


def test_a_page_that_fails_gives_nothing_away(
    home: Path, store: TenantConfigStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(store, tenant)
    with visiting(home) as browser:
        browser._transport.raise_server_exceptions = False
        monkeypatch.setattr("autoopt_pipeline.dashboard.pages.modules.read_programs", lambda *_: 1 / 0)
        page = browser.get(f"/tenants/{tenant}/modules/routing")
    assert page.status_code == 500
    assert "ZeroDivisionError" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_what_a_tenant_wrote_is_text_and_never_markup(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant, agents=[{"name": "a", "description": HOSTILE}, {"name": "b"}])
    store.write("broken", {"tenant_id": "broken", HOSTILE: HOSTILE})
    programs = artifacts(home, tenant)
    version = stored_program(
        programs,
        made_program(tenant, demos=[HOSTILE], instructions={"decide": HOSTILE}),
        active=True,
        changes={"reason": HOSTILE, "optimizer": HOSTILE, "verdict": "awaiting_approval"},
    )
    programs.transition(None, expected=version, actor=HOSTILE, reason=HOSTILE)
    link = "javascript:alert(1)"
    outcome(
        home, tenant, verdict=HOSTILE, reason=HOSTILE, version=version, phoenix_traces=link, phoenix_comparison=link,
        report=f"{HOSTILE}\n\n[x](javascript:alert(1)) ![x](http://evil.example/x.png)",
        incumbent_score=0.1, candidate_score=0.2,
    )  # fmt: skip
    module = f"/tenants/{tenant}/modules/routing"
    with visiting(home) as browser:
        for path in (
            "/", "/?text=" + HOSTILE, "/activity", "/why?tenant=" + HOSTILE, "/why?tenant=broken", "/tenants/broken",
            f"/tenants/{tenant}", module, f"{module}/versions/{version}", f"{module}/roll-back", f"{module}/live",
            f"{module}/approve?version={version}", f"{module}/outcomes/{HOSTILE.replace('/', '')}",
            f"/tenants/{HOSTILE.replace('/', '')}", f"{module}/versions/{version}?against={HOSTILE}",
        ):  # fmt: skip
            text = browser.get(path).text
            assert "<script>alert" not in text, path
            assert "<img src=x" not in text, path
            assert 'src="http' not in text, path
            assert "javascript:" not in text.replace("[x](javascript:", ""), path


def test_the_activity_tells_failures_first_with_their_cause(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant)
    outcome(home, tenant, verdict="rejected", reason="not better")
    with open_instance(home) as instance:
        failed_run(instance, tenant, ["modality"])
        event = {"event": "rolled_back", "reason": "clearly worse", "from": "v2", "to": "v1"}
        instance.report_runless_asset_event(dg.AssetObservation("routing", partition=tenant, metadata=event))
    with visiting(home) as browser:
        page = text_of(browser.get("/activity"))
    failures, others = page.split("Everything else")
    assert f"run failed {tenant} modality" in failures
    for told in ("rejected", "not better", "rolled back", "v2 → v1: clearly worse", "tenant added"):
        assert told in others


def test_a_trend_is_the_score_of_what_served_from_outcome_to_outcome(home: Path, tenant: str) -> None:
    for verdict, before, after in (("promoted", 0.2, 0.5), ("rejected", 0.4, 0.9), ("promoted", 0.5, 0.75)):
        outcome(home, tenant, verdict=verdict, incumbent_score=before, candidate_score=after)
    outcome(home, tenant, verdict="not_enough_data")
    with open_instance(home) as instance:
        points = read_trends(instance, [(tenant, "routing"), (tenant, "modality")])
    assert [point.serving for point in points[tenant, "routing"]] == [0.5, 0.4, 0.75]
    assert sparkline(points[tenant, "routing"]) == "0.0,18.0 33.3,12.0 66.7,14.0 100.0,7.0"
    assert sparkline([]) == ""


def test_a_look_that_fails_keeps_the_last_one_and_says_since_when() -> None:
    answers: list[list[ModuleStatus] | Exception] = [
        [],
        ConfigStoreUnavailable("gone", "bring it back"),
        RuntimeError("x"),
    ]

    def look() -> list[ModuleStatus]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    statuses = StatusCache(lambda: None, lambda: StatusSnapshot(datetime.now(UTC), tuple(look())), lambda _: [])
    statuses._take()
    first, trouble = statuses.latest()
    assert (first is not None, trouble) == (True, None)
    statuses._take()
    kept, told = statuses.latest()
    statuses._take()
    _, later = statuses.latest()
    assert kept is first
    assert told is not None
    assert later is not None
    assert told.what == "gone -> bring it back"
    assert later.since == told.since
    assert later.what.startswith("RuntimeError")


def test_the_first_tenants_are_shown_while_all_are_being_read() -> None:
    go_on = Event()

    def read_all() -> StatusSnapshot:
        assert go_on.wait(30)
        return StatusSnapshot(datetime.now(UTC), ())

    statuses = StatusCache(lambda: StatusSnapshot(datetime.now(UTC), (), tenants_left=975), read_all, lambda _: [])
    statuses.start()
    try:
        first, trouble = statuses.latest()
        assert first is not None
        assert (first.tenants_left, trouble) == (975, None)
        go_on.set()
        deadline = time.monotonic() + 30
        while (snapshot := statuses.latest()[0]) and snapshot.tenants_left and time.monotonic() < deadline:
            time.sleep(0.05)
        assert snapshot is not None
        assert snapshot.tenants_left == 0
    finally:
        go_on.set()
        statuses.stop()
