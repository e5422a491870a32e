"""The dashboard's pages about configurations, as a browser without JavaScript meets them."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from httpx import Response
from starlette.testclient import TestClient

from autoopt_pipeline.dashboard.auth import Role
from autoopt_pipeline.orchestration.partitions import registered_tenants
from autoopt_pipeline.tenants.config import parse_config
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from tests.support.dashboard_client import client, everybody, form, forms

HERE = "/tenants/acme/configuration"
NASTY = '"><script>alert(1)</script>{{ 9173 * 7919 }}\nsecond line'


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TenantConfigStore:
    """A store of its own, and a Phoenix that does not answer: configurations do not need it."""
    url = f"sqlite:///{tmp_path / 'config.db'}"
    monkeypatch.setenv("AUTOOPT_CONFIG_STORE_URL", url)
    monkeypatch.setenv("AUTOOPT_ARTIFACTS_URL", str(tmp_path / "artifacts"))
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", "http://127.0.0.1:9")
    return open_config_store(url)


def save(store: TenantConfigStore, tenant: str = "acme", **fields: object) -> int:
    return write_config(store, parse_config({"tenant_id": tenant, **fields}, where="test"))


@pytest.fixture
def browser(store: TenantConfigStore, instance: dg.DagsterInstance) -> TestClient:
    save(store, agents=[{"name": "a", "description": NASTY}], budget={"max_lm_calls": 2000})
    return client(instance)


def newest(store: TenantConfigStore, tenant: str = "acme") -> dict:
    document = store.history(tenant)[-1].document
    assert isinstance(document, dict)
    return document


def post(browser: TestClient, page: str, action: str | None = None, **changes: Any) -> Response:
    """Open a page, fill in one of its forms, and send it."""
    html = browser.get(page).text
    action = action or page.partition("?")[0]
    return browser.post(action, data=form(html, action, **changes))


def test_one_field_is_saved_and_no_other_is_touched(browser: TestClient, store: TenantConfigStore) -> None:
    before = newest(store)
    page = post(browser, HERE, min_samples_for_optimization="7")
    assert "Saved as version 2. min_samples_for_optimization: 100 → 7" in page.text
    assert newest(store) == before | {"min_samples_for_optimization": 7}
    page = post(browser, HERE, min_samples_for_optimization="")
    assert newest(store) == before
    assert "Nothing was changed." in post(browser, HERE).text
    assert len(store.history("acme")) == 3


def test_what_a_tenant_wrote_is_shown_as_text(browser: TestClient, store: TenantConfigStore) -> None:
    post(browser, HERE, **{"agents.0.name": "b", "lm.model": "openai/" + NASTY.replace("\n", "")})
    assert newest(store)["agents"] == [{"name": "b", "description": NASTY}]
    for page in (HERE, f"{HERE}/history", f"{HERE}/text", f"{HERE}/revert?version=1", "/configuration"):
        html = browser.get(page).text
        assert "<script>alert" not in html
        assert str(9173 * 7919) not in html
    assert "&lt;script&gt;" in browser.get(HERE).text


def test_a_page_that_is_sent_as_it_came_saves_nothing(browser: TestClient, store: TenantConfigStore) -> None:
    lm = {"model": "openai/ m ", "temperature": 0.30000000000000004, "timeout_seconds": 1e-7, "api_base": ""}
    agents = [{"name": "a", "description": f"\n lead\r\ntab\t & &amp; {NASTY}"}, {"name": "b", "description": ""}]
    routing = {"mode": "auto", "retrain_after": "2026-11-20T10:00:00.123456+02:00"}
    quiet = [{"start": "22:00", "end": "06:00", "weekdays": ["sun", "mon", "mon"]}]
    save(
        store,
        agents=agents,
        lm=lm,
        teacher_lm=None,
        budget={},
        excluded_traces=["A" * 32, "b" * 32],
        modules={"routing": routing, "gone": {}},
        quiet_hours=quiet,
    )
    assert "Nothing was changed." in post(browser, HERE).text
    assert len(store.history("acme")) == 2


def test_a_wrong_value_is_told_at_its_input_and_nothing_typed_is_lost(
    browser: TestClient, store: TenantConfigStore
) -> None:
    typed = {"agents.1.name": "not a name", "budget.max_tokens": "many", "daily_budget.max_tokens": "120"}
    page = post(browser, HERE, **typed)
    assert page.status_code == 400
    fields = forms(page.text)[HERE]
    assert {name: fields[name] for name in typed} == {name: [text] for name, text in typed.items()}
    assert "got &#39;many&#39;" in page.text
    assert 'aria-describedby="budget.max_tokens-about" aria-invalid="true"' in page.text
    assert '<a href="#budget.max_tokens">budget.max_tokens</a>' in page.text
    assert page.text.count("autofocus") == 1
    assert len(store.history("acme")) == 1
    done = browser.post(HERE, data=fields | {"agents.1.name": ["c"], "budget.max_tokens": [""]})
    assert newest(store)["daily_budget"] == {"max_tokens": 120}
    assert "Saved as version 2" in done.text


def test_a_key_that_was_typed_for_its_variable_is_not_shown_again(
    browser: TestClient, store: TenantConfigStore
) -> None:
    page = post(browser, HERE, **{"lm.model": "openai/m", "lm.api_key_env": "sk-secret"})
    assert page.status_code == 400
    assert "never the key" in page.text
    assert "sk-secret" not in page.text
    html = chosen(browser, field="lm.api_key_env", which="all")
    page = browser.post("/configuration/preview", data=form(html, "/configuration/preview", value="sk-secret"))
    assert page.status_code == 400
    assert "lm.api_key_env: give the name of an environment variable" in page.text
    assert "sk-secret" not in page.text
    store.write("acme", {"tenant_id": "acme", "lm": {"model": "m", "api_key_env": "sk-secret"}})
    assert "sk-secret" not in browser.get(f"{HERE}/history").text
    assert "sk-secret" not in browser.get("/configuration").text


def conflicts(browser: TestClient, store: TenantConfigStore) -> None:
    """Of two people who save at once, the second sees what the first changed, and saves both."""
    mine = form(browser.get(HERE).text, HERE, **{"mode": "propose", "agents.1.name": "mine"})
    theirs = {"agents.1.name": "theirs", "min_samples_for_optimization": "7"}
    post(browser, HERE, **theirs)
    page = browser.post(HERE, data=mine)
    assert page.status_code == 409
    assert "somebody saved version 2 while you worked on 1" in page.text
    assert "min_samples_for_optimization" in page.text
    assert len(store.history("acme")) == 2
    done = browser.post(HERE, data=form(page.text, HERE))
    assert "Saved as version 3" in done.text
    saved = newest(store)
    assert (saved["mode"], saved["min_samples_for_optimization"]) == ("propose", 7)
    assert [agent["name"] for agent in saved["agents"]] == ["a", "theirs", "mine"]


def test_of_two_who_save_at_once_nobody_loses_anything(browser: TestClient, store: TenantConfigStore) -> None:
    conflicts(browser, store)


def test_of_two_who_save_at_once_nobody_loses_anything_in_redis(
    store: TenantConfigStore, redis_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOOPT_CONFIG_STORE_URL", redis_url)
    shared = open_config_store(redis_url)
    save(shared, agents=[{"name": "a"}])
    conflicts(client(instance), shared)


def test_a_configuration_that_is_not_valid_is_mended_as_text(browser: TestClient, store: TenantConfigStore) -> None:
    store.write("acme", {"tenant_id": "acme", "mode": "maybe"})
    html = browser.get(HERE).text
    assert "mode: has to be" in html
    there = f"{HERE}/text"
    fields = form(html, there)
    page = browser.post(there, data=fields | {"text": ["tenant_id: acme\nmode: [typed"]})
    assert page.status_code == 400
    assert "line 2" in page.text
    assert forms(page.text)[there]["text"] == ["tenant_id: acme\r\nmode: [typed"]
    mended = fields["text"][0].replace("maybe", "propose")
    assert "Saved as version 3" in browser.post(there, data=fields | {"text": [mended]}).text
    assert newest(store) == {"tenant_id": "acme", "mode": "propose"}
    assert "Nothing was changed." in post(browser, there).text


def test_a_text_that_somebody_else_overtook_is_kept(browser: TestClient, store: TenantConfigStore) -> None:
    there = f"{HERE}/text"
    mine = form(browser.get(there).text, there, text="tenant_id: acme\nmode: propose\n")
    post(browser, HERE, min_samples_for_optimization="7")
    page = browser.post(there, data=mine)
    assert page.status_code == 409
    assert "min_samples_for_optimization" in page.text
    browser.post(there, data=form(page.text, there))
    assert newest(store) == {"tenant_id": "acme", "mode": "propose"}


def test_versions_are_compared_and_an_earlier_one_is_saved_again(browser: TestClient, store: TenantConfigStore) -> None:
    post(browser, HERE, min_samples_for_optimization="7")
    post(browser, HERE, mode="propose")
    assert "mode" in browser.get(f"{HERE}/history").text
    both = browser.get(f"{HERE}/history?from=1&to=3").text
    assert "min_samples_for_optimization" in both
    assert "has no configuration version 9" in browser.get(f"{HERE}/history?from=9&to=3").text
    there = f"{HERE}/revert"
    assert "min_samples_for_optimization" in browser.get(f"{there}?version=1").text
    stale = form(browser.get(f"{there}?version=1").text, there)
    assert "version 4, the same as 1" in post(browser, f"{there}?version=1").text
    assert newest(store) == store.history("acme")[0].document
    assert "is at version 4, not 3" in browser.post(there, data=stale).text
    store.write("acme", {"tenant_id": "acme", "mode": "maybe"})
    post_broken = browser.get(f"{there}?version=5").text
    assert "mode" in post_broken
    assert there not in forms(post_broken)


def test_a_tenant_is_added_and_removed_with_its_partition(
    browser: TestClient, store: TenantConfigStore, instance: dg.DagsterInstance
) -> None:
    there = "/configuration/add"
    page = post(browser, there, tenant="a/b", agents="one=does this\r\n\r\ntwo")
    assert page.status_code == 400
    assert "a/b" in page.text
    assert forms(page.text)[there]["agents"] == ["one=does this\r\n\r\ntwo"]
    assert "new was added" in browser.post(there, data=form(page.text, there, tenant="new")).text
    assert newest(store, "new")["agents"] == [{"name": "one", "description": "does this"}, {"name": "two"}]
    assert "new" in registered_tenants(instance)
    assert post(browser, there, tenant="new").status_code == 409
    remove = "/tenants/new/configuration/remove"
    stale = form(browser.get(remove).text, remove)
    assert "traces in Phoenix" in browser.get(remove).text
    post(browser, "/tenants/new/configuration", mode="propose")
    assert browser.post(remove, data=stale).status_code == 409
    assert "new was removed" in post(browser, remove).text
    assert "new" not in store.current()
    assert "new" not in registered_tenants(instance)
    assert "The tenant was removed" in browser.get("/tenants/new/configuration/history").text
    assert "new was added" in post(browser, there, tenant="new").text


def test_the_list_is_searched_and_paged(browser: TestClient, store: TenantConfigStore) -> None:
    for n in range(60):
        save(store, f"org:t{n:02}", enable_auto_optimization=n > 0)
    store.write("odd", {"tenant_id": "odd", "mode": "maybe"})
    assert "page 1 of 2" in browser.get("/configuration").text
    assert "org:t59" in browser.get("/configuration?page=2").text
    assert "org:t59" not in browser.get("/configuration").text
    assert "1 tenants" in browser.get("/configuration?text=T59").text
    assert "Nothing matches" in browser.get("/configuration?text=none-such").text
    assert ">org:t00<" in browser.get("/configuration?state=off").text
    assert ">org:t01<" not in browser.get("/configuration?state=off").text
    assert "mode: has to be" in browser.get("/configuration?state=invalid").text


NAME = "min_samples_for_optimization"


def chosen(browser: TestClient, field: str = NAME, **changes: Any) -> str:
    """The page that asks for the value of a field of many tenants."""
    return post(browser, "/configuration", "/configuration/change", field=field, **changes).text


def test_one_field_of_a_thousand_tenants_is_changed_after_a_look_at_what_that_does(
    store: TenantConfigStore, redis_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOOPT_CONFIG_STORE_URL", redis_url)
    store, browser = open_config_store(redis_url), client(instance)
    save(store)
    for n in range(1000):
        save(store, f"org:t{n:03}", **({NAME: 7} if n == 0 else {}))
    store.write("org:odd", {"tenant_id": "org:odd", "mode": "maybe"})
    html = browser.get("/configuration?text=org").text
    fields = form(html, "/configuration/change", field=NAME, which="all")
    html = browser.post("/configuration/change", data=fields).text
    assert "1,001 tenants" in html
    page = browser.post("/configuration/preview", data=form(html, "/configuration/preview", value="0"))
    assert page.status_code == 400
    assert "has to be 1 or more" in page.text
    html = browser.post("/configuration/preview", data=form(page.text, "/configuration/preview", value="7")).text
    assert "changes <b>999</b>" in html
    assert "stay as they are <b>1</b>" in html
    assert "refused <b>1</b>" in html
    assert "the first 200 of 999" in html
    assert "mode: has to be" in html
    save(store, "org:t500", mode="propose")
    told = ""
    while "/configuration/apply" in forms(html):  # once, unless this machine is so slow that some are left
        html = browser.post("/configuration/apply", data=form(html, "/configuration/apply")).text
        told += html
    assert sum(map(int, re.findall(r"(\d+) saved, ", told))) == 998
    assert sum(map(int, re.findall(r"(\d+) in conflict, ", told))) == 1
    assert "somebody saved version 2 meanwhile, upon 1" in told
    assert newest(store, "org:t999") == {"tenant_id": "org:t999", NAME: 7}
    assert newest(store, "org:t500") == {"tenant_id": "org:t500", "mode": "propose"}
    assert NAME not in newest(store)


def test_many_tenants_follow_the_default_again(browser: TestClient, store: TenantConfigStore) -> None:
    save(store, "b", **{NAME: 100})
    save(store, "c", **{NAME: 9})
    html = chosen(browser, which="ticked", tenant=["b", "c", "none-such"])
    html = browser.post("/configuration/preview", data=form(html, "/configuration/preview")).text
    assert "stays as it is, and follows the default" in html
    assert "there is no such tenant" in html
    browser.post("/configuration/apply", data=form(html, "/configuration/apply"))
    assert newest(store, "b") == {"tenant_id": "b"}
    assert newest(store, "c") == {"tenant_id": "c"}
    assert "no tenant is selected" in chosen(browser, which="ticked")
    assert "choose a field" in chosen(browser, field="tenant_id", which="all")


def test_a_viewer_sees_and_changes_nothing(
    browser: TestClient, store: TenantConfigStore, instance: dg.DagsterInstance
) -> None:
    viewer = client(instance, everybody(Role.VIEWER))
    html = viewer.get(HERE).text
    assert "disabled" in html
    assert "<button>Save" not in html
    assert viewer.get(f"{HERE}/history").status_code == 200
    for page in (f"{HERE}/text", f"{HERE}/revert?version=1", f"{HERE}/remove", "/configuration/add"):
        assert viewer.get(page).status_code == 403
    sent = form(html, HERE, mode="propose")
    actions = (HERE, f"{HERE}/text", f"{HERE}/revert", f"{HERE}/remove", *(f"/configuration/{each}" for each in BULK))
    assert {viewer.post(action, data=sent).status_code for action in actions} == {403}
    assert len(store.history("acme")) == 1


BULK = ("add", "change", "preview", "apply")


def test_a_form_that_is_not_ours_is_refused(browser: TestClient, store: TenantConfigStore) -> None:
    sent = form(browser.get(HERE).text, HERE, mode="propose", csrf=None)
    actions = (HERE, f"{HERE}/text", f"{HERE}/revert", f"{HERE}/remove", *(f"/configuration/{each}" for each in BULK))
    assert {browser.post(action, data=sent).status_code for action in actions} == {403}
    assert len(store.history("acme")) == 1


def test_who_may_see_some_tenants_sees_and_changes_only_those(
    browser: TestClient, store: TenantConfigStore, instance: dg.DagsterInstance
) -> None:
    save(store, "org:mine")
    some = client(instance, everybody(tenants=("org:*",)))
    html = some.get("/configuration").text
    assert "org:mine" in html
    assert "acme" not in html
    assert {some.get(f"{HERE}{page}").status_code for page in ("", "/text", "/history", "/remove")} == {404}
    sent = form(some.get("/tenants/org:mine/configuration").text, "/tenants/org:mine/configuration")
    assert some.post(HERE, data=sent | {"mode": ["propose"]}).status_code == 404
    assert "none of the tenants that you may see" in post(some, "/configuration/add", tenant="other").text
    html = chosen(some, which="ticked", tenant=["acme", "org:mine"])
    html = some.post("/configuration/preview", data=form(html, "/configuration/preview", value="7")).text
    assert "there is no such tenant" in html
    guessed = form(html, "/configuration/apply", versions="acme=1 org:mine=1 nonsense")
    assert "1 saved, 0 in conflict, 2 refused" in some.post("/configuration/apply", data=guessed).text
    assert NAME not in newest(store)
    assert newest(store, "org:mine")[NAME] == 7


def test_a_store_that_stops_in_the_middle_is_told_and_gone_on_with(
    browser: TestClient, store: TenantConfigStore, tmp_path: Path
) -> None:
    save(store, "b")
    html = chosen(browser, which="all")
    html = browser.post("/configuration/preview", data=form(html, "/configuration/preview", value="7")).text
    with sqlite3.connect(tmp_path / "config.db") as db:  # which takes no more of b, as on a full disk
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON tenant_configs WHEN NEW.tenant_id = 'b' "
            "BEGIN SELECT RAISE(FAIL, 'no more today'); END"
        )
    page = browser.post("/configuration/apply", data=form(html, "/configuration/apply"))
    assert page.status_code == 503
    assert "1 saved, 0 in conflict, 0 refused, 1 left" in page.text
    assert "no more today" in page.text
    with sqlite3.connect(tmp_path / "config.db") as db:
        db.execute("DROP TRIGGER full")
    rest = browser.post("/configuration/apply", data=form(page.text, "/configuration/apply"))
    assert "1 saved, 0 in conflict, 0 refused, 0 left" in rest.text
    assert newest(store, "b")[NAME] == 7


def test_a_duration_is_shown_and_written_with_its_unit(browser: TestClient, store: TenantConfigStore) -> None:
    assert 'placeholder="1h"' in browser.get(HERE).text
    page = post(browser, HERE, optimization_interval_seconds="90 m")
    assert "optimization_interval_seconds: 1h → 1h30m" in page.text
    assert newest(store)["optimization_interval_seconds"] == 5400
    assert forms(browser.get(HERE).text)[HERE]["optimization_interval_seconds"] == ["1h30m"]
    assert "1h30m" in browser.get("/configuration").text
    wrong = post(browser, HERE, optimization_interval_seconds="2 weeks")
    assert "has to be a duration such as 90s, 45m, 2h or 30d" in wrong.text


def test_a_setting_that_has_no_input_is_shown_and_kept(browser: TestClient, store: TenantConfigStore) -> None:
    quiet = [{"start": "22:00", "end": "06:00"}]
    save(store, quiet_hours=quiet, lm={"model": "openai/m", "temperature": 0.5})
    assert "22:00" in browser.get(HERE).text
    post(browser, HERE, mode="propose", **{"lm.model": "openai/n"})
    assert newest(store)["quiet_hours"] == quiet
    assert newest(store)["lm"] == {"model": "openai/n", "temperature": 0.5}


def test_a_model_that_no_client_can_be_sent_to_is_told_at_its_input(
    browser: TestClient, store: TenantConfigStore
) -> None:
    page = post(browser, HERE, **{"lm.model": "nonsense"})
    assert page.status_code == 400
    assert 'aria-describedby="lm.model-about" aria-invalid="true"' in page.text
    assert "name the model as DSPy does" in page.text
    assert len(store.history("acme")) == 1
