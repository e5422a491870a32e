"""Who gets into the dashboard, and what they may see and do there."""

import hashlib
from pathlib import Path

import httpx
import pytest

from autoopt_pipeline.dashboard.auth import Access, Role, User, open_access
from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from tests.support.command_line import autoopt
from tests.support.dashboard_client import csrf, send, text_of, visiting
from tests.support.stored_programs import made_program
from tests.support.stored_programs import store as stored_program
from tests.support.tenant_history import configure

TOKEN = "a-token-that-nobody-guesses-1"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
PEOPLE = f"""
users:
  - {{name: marta, role: operator, token_sha256: {DIGEST}}}
  - {{name: rita, role: reviewer, token_sha256: {hashlib.sha256(b"rita").hexdigest()}}}
  - {{name: vera, token_sha256: {hashlib.sha256(b"vera").hexdigest()}}}
  - {{name: olga, role: operator, tenants: ["acme", "org:*"], token_sha256: {hashlib.sha256(b"olga").hexdigest()}}}
proxy:
  user_header: X-Forwarded-User
  addresses: [10.0.0.0/8]
"""


@pytest.fixture
def store(home: Path) -> TenantConfigStore:
    return open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")


@pytest.fixture
def people(tmp_path: Path) -> Access:
    file = tmp_path / "access.yaml"
    file.write_text(PEOPLE)
    return open_access(Settings(dashboard_access=file), host="0.0.0.0", who="root")  # noqa: S104


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_on_this_machine_alone_nobody_signs_in() -> None:
    access = open_access(Settings(), host="127.0.0.1", who="marta")
    assert access.everybody == User("marta", Role.OPERATOR)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "dashboard.internal", "::"])  # noqa: S104
def test_elsewhere_it_refuses_to_be_open_to_everybody(home: Path, host: str) -> None:
    said = autoopt("dashboard", "--host", host, status=2)
    assert f"the dashboard would be open to everybody who reaches {host}" in said
    assert "AUTOOPT_DASHBOARD_TOKEN" in said


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="has 6 characters"):
        open_access(Settings(dashboard_token="secret"), host="0.0.0.0", who="")  # noqa: S104


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has to hold fields"),
        ("users: []", "at least 1 needed"),
        ("users: [{name: a, rol: viewer}]", "did you mean 'role'"),
        ("users: [{name: a, token_sha256: secret}]", "users.0.token_sha256"),
        ("users: [{name: a}]", "nobody could sign in"),
        (f"users: [{{name: a, token_sha256: {DIGEST}}}, {{name: a}}]", "the same name"),
        ("users: [{name: a", "AUTOOPT_DASHBOARD_ACCESS"),
    ],
)
def test_wrong_rules_are_refused_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "access.yaml"
    file.write_text(text)
    with pytest.raises(InvalidSettings, match=told) as caught:
        open_access(Settings(dashboard_access=file), host="127.0.0.1", who="")
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidSettings, match="No such file"):
        open_access(Settings(dashboard_access=tmp_path / "none"), host="127.0.0.1", who="")


def test_who_has_no_token_sees_the_sign_in_page_and_nothing_else(home: Path, people: Access) -> None:
    with visiting(home, people) as browser:
        sent_on = browser.get("/tenants/acme?x=1")
        assert (sent_on.status_code, sent_on.headers["location"]) == (303, "/sign-in?to=%2Ftenants%2Facme%3Fx%3D1")
        assert browser.get("/board", headers={"hx-request": "true"}).headers["hx-redirect"].startswith("/sign-in")
        assert browser.get("/", headers=bearer("wrong")).status_code == 401
        assert browser.post("/tenants/acme/modules/routing/run").status_code == 401
        assert browser.get("/healthz").text == "ok"
        assert "Overview" not in browser.get("/sign-in").text


def test_a_token_opens_the_dashboard_until_signing_out(home: Path, people: Access) -> None:
    with visiting(home, people) as browser:
        wrong = send(browser, "/sign-in", token="nonsense", to="/")
        assert (wrong.status_code, "Nobody has this token" in wrong.text) == (403, True)
        done = send(browser, "/sign-in?to=/activity", token=TOKEN, to="/activity")
        assert (done.status_code, done.headers["location"]) == (303, "/activity")
        cookie = done.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert TOKEN not in cookie
        page = browser.get("/activity")
        assert "marta, operator" in text_of(page)
        assert browser.post("/sign-out", data={"csrf": csrf(page)}).headers["location"] == "/sign-in"
        assert browser.get("/activity").status_code == 303


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_signing_in_leads_to_no_other_site(home: Path, people: Access, to: str) -> None:
    with visiting(home, people) as browser:
        assert send(browser, "/sign-in", token=TOKEN, to=to).headers["location"] == "/"


def test_behind_tls_the_cookie_is_sent_over_nothing_else(home: Path, people: Access) -> None:
    with visiting(home, people) as browser:
        cookie = browser.get("/sign-in", headers={"x-forwarded-proto": "https"}).headers["set-cookie"].lower()
        assert cookie.startswith("__host-autoopt=")
        assert "; secure" in cookie


def test_a_proxys_header_counts_only_from_its_own_addresses(people: Access) -> None:
    headers = httpx.Headers({"X-Forwarded-User": "vera"})
    assert people.by_proxy(headers, "10.1.2.3") == User("vera", Role.VIEWER)
    assert people.by_proxy(headers, "::ffff:10.1.2.3") == User("vera", Role.VIEWER)
    for address in ("192.168.0.1", "::1", None):
        assert people.by_proxy(headers, address) is None
    assert people.by_proxy(httpx.Headers({"X-Forwarded-User": "mallory"}), "10.1.2.3") is None


@pytest.mark.parametrize("name", ["vera", "rita"])
def test_a_viewer_and_a_reviewer_see_and_change_nothing(
    home: Path, store: TenantConfigStore, people: Access, name: str
) -> None:
    configure(store, "acme")
    with visiting(home, people) as browser:
        page = browser.get("/tenants/acme/modules/routing", headers=bearer(name))
        assert (page.status_code, "Run now" in page.text) == (200, False)
        for answer in (
            browser.get("/tenants/acme/modules/routing/run", headers=bearer(name)),
            browser.post("/tenants/acme/modules/routing/run", data={"force": "1"}, headers=bearer(name)),
        ):
            assert (answer.status_code, "ask an operator" in answer.text) == (403, True)


def test_who_may_see_some_tenants_finds_no_trace_of_others(
    home: Path, store: TenantConfigStore, people: Access
) -> None:
    for tenant in ("acme", "org:one", "hidden-tenant", "hidden:org"):
        configure(store, tenant)
    with visiting(home, people) as browser:
        for path in ("/", "/board", "/activity", "/why", "/why?tenant=hidden-tenan"):
            page = browser.get(path, headers=bearer("olga"))
            assert page.status_code == 200
            assert "hidden-tenant" not in page.text.replace("hidden-tenan&#39;", "")
            assert "hidden:org" not in page.text
        assert "org:one" in browser.get("/", headers=bearer("olga")).text
        there = browser.get("/tenants/hidden-tenant/modules/routing", headers=bearer("olga"))
        nowhere = browser.get("/tenants/hidden-nowhere/modules/routing", headers=bearer("olga"))
        assert there.status_code == nowhere.status_code == 404
        assert text_of(there).replace("hidden-tenant", "x") == text_of(nowhere).replace("hidden-nowhere", "x")
        for part in ("story", "live", "versions/v", "outcomes/r", "approve", "run"):
            path = f"/tenants/hidden-tenant/modules/routing/{part}"
            assert browser.get(path, headers=bearer("olga")).status_code == 404


def test_a_form_of_another_site_changes_nothing(home: Path, store: TenantConfigStore) -> None:
    configure(store, "acme")
    artifacts = VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), "acme", "routing")
    version = stored_program(artifacts, made_program("acme"), changes={"verdict": "awaiting_approval"})
    form = {"version": version, "reason": "because"}
    path = "/tenants/acme/modules/routing/approve"
    with visiting(home) as browser:
        proof = csrf(browser.get(path))
        for fields, headers in (
            (form, {}),
            (form | {"csrf": "guessed"}, {}),
            (form | {"csrf": proof}, {"sec-fetch-site": "cross-site"}),
            (form | {"csrf": proof}, {"sec-fetch-site": "same-site"}),
        ):
            assert browser.post(path, data=fields, headers=headers).status_code == 403
        assert artifacts.active() is None
        assert browser.post(path, data=form | {"csrf": proof}).status_code == 303
        assert artifacts.active() is not None


def test_another_sites_name_for_this_machine_is_refused(home: Path) -> None:
    with visiting(home) as browser:
        assert browser.get("/", headers={"host": "evil.example:8080"}).status_code == 400
        for name in ("127.0.0.1:8080", "[::1]:8080", "LOCALHOST", "localhost:1"):
            assert browser.get("/", headers={"host": name}).status_code == 200


def test_where_people_sign_in_the_dashboard_answers_to_any_name(home: Path, people: Access) -> None:
    with visiting(home, people) as browser:
        assert browser.get("/", headers={"host": "dashboard.example"} | bearer(TOKEN)).status_code == 200


def test_every_answer_tells_browsers_what_to_refuse(home: Path) -> None:
    with visiting(home) as browser:
        for path in ("/", "/nowhere", "/static/dashboard.css", "/healthz"):
            headers = browser.get(path).headers
            assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
        assert browser.get("/").headers["cache-control"] == "no-store"


def test_a_form_without_end_is_refused(home: Path) -> None:
    with visiting(home) as browser:
        large = browser.post("/sign-out", content=b"csrf=" + b"x" * 2_000_000)
        assert large.status_code == 413
        endless = browser.post("/sign-out", content=iter([b"csrf=x"]))
        assert endless.status_code == 411
