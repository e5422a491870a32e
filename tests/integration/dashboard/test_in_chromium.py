"""The dashboard in a real browser, beside a real Dagster and a real Phoenix that is stopped in the middle."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import psutil
import pytest
from axe_core_python.selenium import Axe
from dagster._core.test_utils import create_run_for_test
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, sample_config, send_sample_traffic
from autoopt_pipeline.devtools.stack import (
    Stack,
    copy_instance,
    start_dagster_dev,
    start_dashboard,
    start_phoenix,
    wait_for_phoenix,
)
from autoopt_pipeline.lm.progress import Progress
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.run_history.progress import RunProgress
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix
from tests.support.browsing import chromium, click, fill, press, wait_for_text
from tests.support.review_queues import await_reviews, reviews_of

RUN_ENDS = 300
"""Seconds in which a run has started and ended, on a machine that has other things to do."""

BUSY_RUN = "4d1b9b1c-5d0e-4a55-8f0e-0d6f0c9a8b7e"

HOSTILE = "<script>alert('x')</script><b>\"bold\"</b>"


@dataclass
class Site:
    """The dashboard's address, the stack that it shows, and its Phoenix."""

    url: str
    stack: Stack
    processes: Processes
    phoenix_port: int

    @property
    def artifacts_root(self) -> ObjectStore:
        return ObjectStore(str(self.stack.home / ".autoopt" / "artifacts"))

    @property
    def artifacts(self) -> VersionStore:
        return VersionStore(self.artifacts_root, "acme", "routing")


def tell_progress(instance: dg.DagsterInstance, done: int) -> None:
    """As the run of the tenant `busy` would, which nobody executes."""
    progress = Progress(phase="incumbent on dev", done=done, total=73, calls=96, tokens=12345, seconds=40)
    row = RunProgress(run_id=BUSY_RUN, at=datetime.now(UTC), progress=progress)
    instance.daemon_cursor_storage.set_cursor_values({"autoopt/progress/busy/routing": row.model_dump_json()})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site")
    copy_instance(home)
    port = free_port()
    with Processes(home / "logs") as processes:
        endpoint = start_phoenix(processes, home / "phoenix", port, free_port())
        stack = Stack(home, endpoint, {"AUTOOPT_LM": "stand-in", "AUTOOPT_SENSOR_INTERVAL_SECONDS": "86400"})
        store = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")
        acme = replace(SAMPLE_TENANTS[0], modules=("routing",))
        # Too many for the sensor, whose own runs would only be in the way; it looks once when its daemon starts.
        by_hand = {"mode": "propose", "min_samples_for_optimization": 10_000}
        manual = sample_config(acme).model_copy(update=by_hand)
        write_config(store, manual)
        write_config(store, manual.model_copy(update={"tenant_id": "hostile"}))
        write_config(store, manual.model_copy(update={"tenant_id": "busy"}))
        write_config(store, manual.model_copy(update={"tenant_id": "reviewed"}))
        store.write("broken", {"tenant_id": "broken", HOSTILE: HOSTILE})
        wait_for_phoenix(processes, endpoint)
        end = datetime.now(UTC) - timedelta(minutes=2)
        send_sample_traffic(Phoenix(endpoint), acme, 450, start=end - timedelta(hours=2), end=end, seed=1)
        await_reviews(home, Phoenix(endpoint), "reviewed", 4)
        with open_instance(home) as instance:
            register_tenant(instance, "acme")
            create_run_for_test(
                instance,
                run_id=BUSY_RUN,
                tags={"dagster/partition": "busy"},
                status=dg.DagsterRunStatus.STARTED,
                asset_selection=frozenset({dg.AssetKey("routing")}),
            )
            tell_progress(instance, 23)
        stack.settings["AUTOOPT_DAGSTER_UI_URL"] = start_dagster_dev(processes, stack, free_port())
        yield Site(start_dashboard(processes, stack, free_port()), stack, processes, port)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium")) as chrome:
        yield chrome


@pytest.fixture(autouse=True)
def _no_complaint_of_the_browser(browser: webdriver.Chrome) -> Iterator[None]:
    """Neither a script that fails, nor anything that the content security policy has to refuse."""
    yield
    said = [entry["message"] for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
    refused = [message for message in said if "status of 409" not in message]
    assert refused == []


def said(browser: webdriver.Chrome) -> str:
    return " ".join(browser.find_element(By.TAG_NAME, "body").text.split())


def decide(browser: webdriver.Chrome, button: str, reason: str) -> None:
    click(browser, f"//a[starts-with(normalize-space(), '{button}')]")
    fill(browser, "reason", reason)
    press(browser, f"//button[normalize-space()='{button}']")


def test_an_operator_runs_approves_looks_and_goes_back(site: Site, browser: webdriver.Chrome) -> None:
    browser.get(site.url)
    search = browser.find_element(By.ID, "text")
    search.send_keys("acm")
    click(browser, "//td/a[contains(@href, '/tenants/acme/') and normalize-space()='routing']")
    wait_for_text(browser, "never optimized")
    click(browser, "//a[normalize-space()='Run now']")
    wait_for_text(browser, "enough new traces: no")
    click(browser, "//input[@name='force']")
    press(browser, "//button[normalize-space()='Run now']")
    wait_for_text(browser, "is in Dagster's queue")
    # The story draws itself anew; nobody loads the page again.
    wait_for_text(browser, "awaiting_approval,", seconds=RUN_ENDS)
    browser.refresh()
    decide(browser, "Approve", "it answers well")
    wait_for_text(browser, "it answers well")
    active = site.artifacts.active()
    assert active is not None
    click(browser, "//summary[normalize-space()='Versions']")
    click(browser, f"//a[normalize-space()='{active.version}']")
    wait_for_text(browser, "What it does differently")
    assert "Confusion of the candidate" in said(browser)
    click(browser, "//a[normalize-space()='routing']")
    decide(browser, "Roll back", "people ask for the old answers")
    wait_for_text(browser, "people ask for the old answers")
    assert site.artifacts.active() is None
    assert [transition.reason for transition in site.artifacts.transitions()] == [
        "it answers well",
        "people ask for the old answers",
    ]


PAGES = ["/", "/?health=failing", "/activity", "/why?tenant=acme", "/tenants/acme", "/tenants/acme/modules/routing",
         "/tenants/acme/modules/routing/backtest",
         "/tenants/busy/modules/routing", "/tenants/acme/modules/routing/roll-back?version=baseline", "/tenants/broken",
         "/configuration", "/tenants/acme/configuration", "/review", "/review/reviewed/routing",
         "/tenants/reviewed/modules/routing", "/review/acme/routing", "/nowhere"]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_fit_for_screen_readers_and_weak_eyes(site: Site, browser: webdriver.Chrome, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for page in PAGES:
        browser.get(site.url + page)
        axe = Axe()
        found = axe.run(browser)["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == [], page
    browser.get_log("browser")  # of the page that is nowhere


def test_pages_fit_on_a_phone(site: Site, browser: webdriver.Chrome) -> None:
    phone = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        for page in PAGES:
            browser.get(site.url + page)
            wide = browser.execute_script(
                "return [...document.querySelectorAll('body *')]"
                ".filter(e => e.getBoundingClientRect().right > 361 && !e.closest('.scroll, .chart, .markdown'))"
                ".map(e => e.outerHTML.slice(0, 200))"
            )
            assert wide == [], page
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 360, page
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get_log("browser")


def test_a_page_shows_how_far_a_run_is_while_it_goes_on(site: Site, browser: webdriver.Chrome) -> None:
    browser.get(f"{site.url}/tenants/busy/modules/routing")
    wait_for_text(browser, "23 of 73 Time left 87 s Elapsed 40 s Rate 34.5 a minute Calls of the run 96")
    bar = browser.find_element(By.CSS_SELECTOR, "#progress progress")
    assert (bar.get_attribute("value"), bar.get_attribute("max")) == ("23", "73")
    with open_instance(site.stack.home) as instance:
        tell_progress(instance, 24)
        wait_for_text(browser, "24 of 73")
        instance.daemon_cursor_storage.set_cursor_values({"autoopt/progress/busy/routing": ""})
        WebDriverWait(browser, 30).until_not(lambda driver: driver.find_elements(By.ID, "progress"))
        tell_progress(instance, 23)


def test_everything_is_reached_by_keyboard_and_typing_keeps_its_place(site: Site, browser: webdriver.Chrome) -> None:
    browser.get(site.url)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the content"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "main"
    browser.find_element(By.ID, "text").send_keys("brok")
    wait_for_text(browser, "1 modules")
    assert browser.switch_to.active_element.get_attribute("id") == "text"
    assert "text=brok" in browser.current_url
    assert "acme" not in browser.find_element(By.ID, "board").text
    browser.switch_to.active_element.send_keys(Keys.CONTROL, "a")
    browser.switch_to.active_element.send_keys(Keys.DELETE)
    wait_for_text(browser, "acme")
    focused = browser.find_element(By.ID, "sort-tenant")
    browser.execute_script("arguments[0].focus()", focused)
    time.sleep(12)  # the board has drawn itself anew
    assert browser.switch_to.active_element.get_attribute("id") == "sort-tenant"


def test_questions_are_answered_by_keys_alone(site: Site, browser: webdriver.Chrome) -> None:
    def type_keys(*keys: str) -> None:
        browser.switch_to.active_element.send_keys(*keys)

    browser.get(f"{site.url}/review/reviewed/routing")
    wait_for_text(browser, "1 of 4")
    first = browser.find_element(By.CSS_SELECTOR, "[data-key='1']").get_attribute("value")
    type_keys("1")
    wait_for_text(browser, "2 of 4")
    type_keys("u")
    wait_for_text(browser, "A new answer replaces yours")
    second = browser.find_element(By.CSS_SELECTOR, "[data-key='2']").get_attribute("value")
    type_keys("2")
    wait_for_text(browser, "2 of 4")
    type_keys("c")
    type_keys("12 u")  # in the note, keys are letters
    type_keys(Keys.ENTER)
    wait_for_text(browser, "3 of 4")
    type_keys("3")
    type_keys(Keys.ENTER)
    wait_for_text(browser, "4 of 4")
    type_keys("=")
    wait_for_text(browser, "All 4 are reviewed")
    assert Axe().run(browser)["violations"] == []
    phoenix = Phoenix(site.stack.phoenix_endpoint)
    spans = VersionStore(site.artifacts_root, "reviewed", "routing").sequential_test()[-1].drawn
    given = [review for (review,) in reviews_of(phoenix, "reviewed", spans).values()]
    answers = {review.label for review in given}
    assert len(answers) == 4
    assert answers > {second, "unsure", "ambiguous"}
    assert first not in answers
    assert [review.metadata["note"] for review in given if "note" in review.metadata] == ["12 u"]


def test_phoenix_that_stops_is_told_and_its_return_too(site: Site, browser: webdriver.Chrome) -> None:
    browser.get(site.url)
    (server,) = {
        psutil.Process(each.pid) for each in psutil.net_connections() if each.laddr and each.pid
        and each.laddr.port == site.phoenix_port and each.status == psutil.CONN_LISTEN
    }  # fmt: skip
    server.kill()
    server.wait(30)
    try:
        wait_for_text(browser, "Phoenix", seconds=120)
        browser.get(f"{site.url}/why?tenant=acme")
        wait_for_text(browser, "does not answer", seconds=120)
        browser.get(f"{site.url}/tenants/acme/modules/routing")
        wait_for_text(browser, "people ask for the old answers")
    finally:
        with Processes(site.stack.home / "logs-again") as again:
            start_phoenix(again, site.stack.home / "phoenix", site.phoenix_port, free_port())
            wait_for_phoenix(again, site.stack.phoenix_endpoint)
            browser.get(f"{site.url}/tenants/acme/modules/routing")
            wait_for_text(browser, "new traces, 10000 needed", seconds=120)
