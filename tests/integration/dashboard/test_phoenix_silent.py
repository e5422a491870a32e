"""A real Phoenix that hangs (SIGSTOP): people see at once what was known, are told since when, and wait for nothing."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from starlette.testclient import TestClient

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.dashboard.app import create_app
from autoopt_pipeline.dashboard.context import open_dashboard
from autoopt_pipeline.dashboard.count_cache import Counts
from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.stack import start_phoenix, wait_for_phoenix
from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.errors import AutooptError, PhoenixUnavailable
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.scheduling.conditions import Attempts, Condition, Evidence, Reason, ScheduleDecision
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.status.module_status import ModuleStatus
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.timeouts import PEOPLE_SECONDS, Patience
from tests.support.command_line import AUTOOPT
from tests.support.dashboard_client import csrf, everybody, text_of
from tests.support.foreign_server import MASKED, answering
from tests.support.phoenix_traffic import requests
from tests.support.review_queues import await_reviews, reviews_of
from tests.support.stored_programs import made_program
from tests.support.stored_programs import store as stored_program
from tests.support.tenant_history import configure

AT_ONCE = 2.5
"""Seconds for a page that waits for nobody, on a machine that has other things to do."""

NOTICED = PEOPLE_SECONDS + AT_ONCE
"""Seconds for whoever is the first to find out."""


@dataclass(frozen=True)
class Server:
    """A Phoenix of this file's own, for the others share theirs."""

    endpoint: str
    process: psutil.Process

    @contextmanager
    def hanging(self) -> Generator[None]:
        self.process.suspend()
        try:
            yield
        finally:
            self.process.resume()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("phoenix"), free_port()
    with Processes(folder / "logs") as processes:
        endpoint = start_phoenix(processes, folder, port, free_port())
        wait_for_phoenix(processes, endpoint)
        send_traffic(Phoenix(endpoint), "acme", requests(37, TrafficProfile(reviewed=0), end=datetime.now(UTC)))
        (pid,) = {
            each.pid for each in psutil.net_connections() if each.pid and each.laddr
            and each.laddr.port == port and each.status == psutil.CONN_LISTEN
        }  # fmt: skip
        yield Server(endpoint, psutil.Process(pid))


@pytest.fixture
def acme(home: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOOPT_HOME", str(home / ".autoopt"))
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", server.endpoint)
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    configure(open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"), "acme")


@pytest.fixture
def browser(home: Path, acme: None) -> Iterator[TestClient]:
    """At a dashboard as `autoopt dashboard` serves it."""
    with open_instance(home) as instance:
        parts = Connections(load_settings(), Patience(PEOPLE_SECONDS))
        app = create_app(open_dashboard(parts, instance, everybody()))
        with TestClient(app, base_url="http://localhost:8080", client=("127.0.0.1", 50000)) as visitor:
            yield visitor


def seconds_of(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def until(found: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.3)


PAGES = ["/", "/why?tenant=acme", "/tenants/acme", "/tenants/acme/modules/routing"]
COUNTED = {
    "/": "37 of 100",
    "/why?tenant=acme": "37 new traces, 100 needed",
    "/tenants/acme": "37 of 100",
    "/tenants/acme/modules/routing": "as traces came in the last day (37)",
}
BANNER = "No traces could be counted since"


def test_pages_keep_their_numbers_and_say_once_since_when_phoenix_is_silent(
    server: Server, browser: TestClient
) -> None:
    for page in PAGES:
        assert COUNTED[page] in text_of(browser.get(page)), page
        assert BANNER not in text_of(browser.get(page)), page
    began = datetime.now(UTC)
    with server.hanging():
        assert seconds_of(lambda: browser.get(PAGES[3])) < NOTICED
        for page in PAGES:
            shown = ""

            def look(page: str = page) -> None:
                nonlocal shown
                shown = text_of(browser.get(page))

            assert seconds_of(look) < AT_ONCE, page
            if page == "/":  # looks by itself, every few seconds
                until(lambda: BANNER in text_of(browser.get("/")))
                look()
            assert COUNTED[page] in shown, page
            assert shown.count(BANNER) == 1, page
            assert shown.count("does not answer") == 1, page
            assert "error" not in shown, page
            (since,) = [word for word in [shown.partition(f"{BANNER} ")[2][:19]] if word]
            assert abs((datetime.fromisoformat(since).replace(tzinfo=UTC) - began).total_seconds()) < NOTICED
    until(lambda: BANNER not in text_of(browser.get(PAGES[1])))
    until(lambda: BANNER not in text_of(browser.get("/")))


def test_a_dashboard_that_never_saw_phoenix_answer_says_so_soon(server: Server, browser: TestClient) -> None:
    with server.hanging():
        assert seconds_of(lambda: browser.get("/")) < NOTICED + 1
        until(lambda: "acme" in text_of(browser.get("/")))
        shown = text_of(browser.get("/tenants/acme/modules/routing"))
        assert shown.count("does not answer") == 1
        assert "error: what is new is not known" in shown


def test_versions_side_by_side_keep_their_numbers_too(home: Path, server: Server, browser: TestClient) -> None:
    artifacts = VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), "acme", "routing")
    version = stored_program(artifacts, made_program("acme"))
    artifacts.transition(version, expected=None, actor="ada", reason="better", canary={"baseline": 0.1})
    part, short_name = "/tenants/acme/modules/routing/live", version.rpartition("-")[2]
    before = text_of(browser.get(part))
    assert f"{short_name} 0 0" in before
    with server.hanging():
        assert seconds_of(lambda: browser.get(part)) < NOTICED
        shown = text_of(browser.get(part))
    assert f"{short_name} 0 0" in shown
    assert "The table shows the analysis at" in shown
    assert shown.count("does not answer") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["status", "--json"],
        ["why", "acme", "routing"],
        ["trigger", "--tenant-id", "acme", "--dry-run"],
        ["traces", "stats", "acme"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_says_what_it_waits_for_and_gives_up(server: Server, acme: None, command: list[str]) -> None:
    with (
        server.hanging(),
        subprocess.Popen([AUTOOPT, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running,
    ):
        assert running.stderr
        assert running.stderr.readline() == f"waiting for Phoenix at {server.endpoint} ...\n"
        began = time.monotonic()
        out, err = running.communicate()
        assert time.monotonic() - began < NOTICED + 2  # on a machine that has other things to do
    assert "ReadTimeout" in out + err
    assert "waiting" not in err
    assert running.returncode == 2
    if "--json" in command:
        assert {each["decision"] for each in json.loads(out)["modules"] if each["enabled"]} == {"error"}


def counted(reason: Reason = Reason.TOO_FEW_TRACES, detail: str = "") -> ModuleStatus:
    enough = Condition("enough new traces", False, "37 new traces, 100 needed", Reason.TOO_FEW_TRACES, need=100)
    decision = ScheduleDecision(reason, detail, evidence=Evidence(37), need=100, conditions=(enough,))
    return ModuleStatus("acme", "routing", decision, Attempts())


def uncounted(reason: Reason, detail: str, *, outcome_id: int | None = None) -> ModuleStatus:
    attempts = Attempts(outcome_id=outcome_id)
    return ModuleStatus("acme", "routing", ScheduleDecision(reason, detail), attempts, uncounted="Phoenix is gone")


def test_what_was_counted_decides_as_long_as_nothing_newer_is_known() -> None:
    counts = Counts()
    (unknown,) = counts.completed([uncounted(Reason.ERROR, "Phoenix is gone")])
    assert (unknown.decision.reason, unknown.decision.detail) == (Reason.ERROR, "what is new is not known")
    trouble = counts.trouble
    assert trouble
    counts.completed([counted(reason=Reason.IN_PROGRESS, detail="run 7 is under way")])
    over = counts.trouble
    assert over is None
    (ended,) = counts.completed([uncounted(Reason.ERROR, "Phoenix is gone")])  # the run has ended meanwhile
    assert (ended.decision.reason, ended.decision.detail) == (Reason.TOO_FEW_TRACES, "37 new traces, 100 needed")
    (waiting,) = counts.completed([uncounted(Reason.NOT_DUE, "due in 5 min")])
    assert (waiting.decision.reason, waiting.decision.detail) == (Reason.NOT_DUE, "due in 5 min")
    assert (waiting.decision.evidence, waiting.decision.need) == (Evidence(37), 100)
    later = counts.trouble
    assert later
    assert later.since > trouble.since


def test_what_a_run_has_learnt_from_since_is_not_new_any_more() -> None:
    counts = Counts()
    counts.completed([counted()])
    (unknown,) = counts.completed([uncounted(Reason.ERROR, "Phoenix is gone", outcome_id=7)])
    assert (unknown.decision.detail, unknown.decision.evidence) == ("what is new is not known", None)
    (waiting,) = counts.completed([uncounted(Reason.NOT_DUE, "due in 5 min", outcome_id=7)])
    assert (waiting.decision.detail, waiting.decision.evidence) == ("due in 5 min", None)


def test_a_tenant_that_is_gone_is_forgotten() -> None:
    counts = Counts()
    counts.completed([counted()])
    counts.completed([], of_all=True)
    (standing,) = counts.completed([uncounted(Reason.ERROR, "Phoenix is gone")])
    assert standing.decision.evidence is None


def test_who_asks_a_silent_server_again_is_told_at_once_until_it_answers(server: Server) -> None:
    phoenix = Phoenix(server.endpoint, patience=Patience(PEOPLE_SECONDS))
    name = project_name("acme")
    before = set(threading.enumerate())

    def asking() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "silent-phoenix" and each not in before]

    def ask() -> None:
        with pytest.raises(PhoenixUnavailable, match="does not answer: ReadTimeout"):
            phoenix.project(name)

    with server.hanging():
        assert PEOPLE_SECONDS <= seconds_of(ask) < NOTICED
        assert all(seconds_of(ask) < 0.1 for _ in range(20))
        assert len(asking()) == 1

    def answers() -> bool:
        try:
            return phoenix.project(name) is not None
        except PhoenixUnavailable:
            return False

    until(answers)
    until(lambda: not asking())


def test_a_server_that_is_no_good_but_answers_is_not_silent() -> None:
    with answering(MASKED, version="15.12.0") as server:
        endpoint = server.url
    phoenix = Phoenix(endpoint, patience=Patience(PEOPLE_SECONDS))
    with pytest.raises(PhoenixUnavailable, match="ConnectError"):
        phoenix.project("acme")
    with answering(MASKED, version="15.12.0", port=int(endpoint.rpartition(":")[2])):

        def told() -> str:
            with pytest.raises(AutooptError) as error:
                phoenix.project("acme")
            return str(error.value)

        until(lambda: "too old" in told())


def test_a_run_waits_as_long_as_the_settings_say(server: Server) -> None:
    phoenix = Phoenix(server.endpoint, timeout_seconds=PEOPLE_SECONDS + 2)
    with server.hanging():
        threading.Timer(PEOPLE_SECONDS + 1, server.process.resume).start()
        assert phoenix.project(project_name("acme")) is not None


def test_an_answer_is_kept_beside_its_question_until_phoenix_takes_it(
    home: Path, server: Server, browser: TestClient
) -> None:
    phoenix, here = Phoenix(server.endpoint), "/review/globex/routing"
    configure(open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"), "globex")
    drawn = await_reviews(home, phoenix, "globex", 1)
    page = browser.get(here)
    form = {"csrf": csrf(page), "trace": drawn[0].span_id, "answer": "unsure", "note": "it is <vague>"}
    with server.hanging():
        refused = browser.post(here, data=form)
        assert (refused.status_code, "Your answer is not stored yet" in text_of(refused)) == (409, True)
        assert "does not answer" in text_of(refused)
        assert "question number" in text_of(refused)
        assert 'value="it is &lt;vague&gt;"' in refused.text
        seconds = seconds_of(lambda: browser.get(here))
        assert seconds < NOTICED
        assert browser.get(here).status_code == 503
        assert "Try again" in text_of(browser.get(here))
    until(lambda: browser.get(here).status_code == 200)
    assert "The only one is reviewed" in text_of(browser.post(here, data=form))
    assert [review.label for review in reviews_of(phoenix, "globex", drawn)[drawn[0].span_id]] == ["unsure"]
