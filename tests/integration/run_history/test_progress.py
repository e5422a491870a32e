"""How far an evaluation is: counted right, told in every place while it lasts, and not told where it is soon over."""

import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.definitions import defs
from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, sample_config, send_sample_traffic
from autoopt_pipeline.evaluation.runner import answer_all
from autoopt_pipeline.lm import progress as reporting
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.lm.progress import Progress, tracking
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.orchestration.launch import run_in_process
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.run_history import progress as telling
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.run_history.progress import RunProgress, read_module_progress, read_progress
from autoopt_pipeline.tenants.config import LMSettings
from autoopt_pipeline.tenants.store import write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import AUTOOPT, autoopt
from tests.support.dashboard_client import text_of, visiting
from tests.support.llm_server import LLMServer
from tests.support.sample_decisions import example
from tests.support.tenant_history import failed_run

ROUTING = get_module("routing")
LABELS = [Label("search_agent", ""), Label("report_agent", "")]
EXAMPLES = [example(f"question {i}", LABELS[i % 2].name) for i in range(20)]
SLOW = replace(SAMPLE_TENANTS[0], tenant_id="slow", modules=("routing",))
TOKENS = 15
"""Of each answer of the server."""

NUMBERS = st.integers(0, 10**12)
MEASURED = st.builds(
    Progress, phase=st.text(max_size=300), done=NUMBERS, total=st.none() | st.integers(0, 10**6), calls=NUMBERS,
    tokens=NUMBERS, seconds=st.floats(0, 1e7),
)  # fmt: skip


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a third of a second is long, and is told at every turn."""
    monkeypatch.setattr(reporting, "REPORT_SECONDS", 0.1)
    monkeypatch.setattr(reporting, "QUIET_SECONDS", 0.3)
    monkeypatch.setattr(telling, "STORED_SECONDS", 0.0)
    monkeypatch.setattr(telling, "LOGGED_SECONDS", 1.0)


def evaluated(server: LLMServer) -> list[Progress | None]:
    """The reports of one evaluation with four calls at once."""
    reports: list[Progress | None] = []
    settings = LMSettings(model="openai/slow", api_base=server.url, concurrency=4)
    lm = metered_lm(settings, Meter(1000, 10**9))
    with tracking(lm.meter, reports.append) as tracker, tracker.phase("incumbent on dev", len(EXAMPLES)) as answered:
        answer_all(ROUTING, ROUTING.build_program(LABELS), EXAMPLES, lm, answered=answered)
        time.sleep(2 * reporting.REPORT_SECONDS)  # so that the end is reported too
    return reports


@given(MEASURED)
def test_rate_and_time_left_are_numbers_that_can_be_told(progress: Progress) -> None:
    assert 0 <= progress.rate < float("inf")
    left = progress.seconds_left
    assert left is None or 0 <= left < float("inf")
    assert (left is None) == (progress.done == 0 or progress.total is None)
    assert str(progress).startswith(progress.phase)
    assert "nan" not in str(progress).removeprefix(progress.phase)


def test_what_is_left_takes_as_long_as_what_is_done() -> None:
    progress = Progress(phase="incumbent on dev", done=20, total=73, calls=96, tokens=12345, seconds=40)
    assert progress.rate == 0.5
    assert progress.seconds_left == 106
    assert str(progress) == (
        "incumbent on dev: 20 of 73 after 40 s; 96 calls and 12,345 tokens in all, 30.0 a minute, 106 s left"
    )


def test_an_evaluation_tells_how_far_it_is_while_answers_come(impatient: None, server: LLMServer) -> None:
    server.trouble = [0.4] * len(EXAMPLES)
    *reports, ended = evaluated(server)
    assert ended is None
    told = [report for report in reports if report]
    assert len(told) >= 5
    for report in told:
        assert (report.phase, report.total) == ("incumbent on dev", 20)
        # A call is counted when it begins, its tokens when it ends.
        assert report.done <= report.tokens / TOKENS <= report.calls <= report.done + 4
    assert any(0 < report.done < 20 for report in told)
    assert all(before.done <= after.done and before.seconds < after.seconds for before, after in pairwise(told))
    assert (told[-1].done, told[-1].calls, told[-1].tokens) == (20, 20, 20 * TOKENS)


def test_an_answer_that_cannot_be_read_is_done_too(impatient: None, server: LLMServer) -> None:
    server.trouble = [0.6, *["no field at all"] * 10]
    *_, last, _ = evaluated(server)
    assert last
    assert last.done == 20


def test_without_a_total_calls_are_counted_and_no_time_is_left_to_tell(impatient: None) -> None:
    meter, reports = Meter(1000, 10**9, calls=7), list[Progress | None]()
    with tracking(meter, reports.append) as tracker, tracker.phase("making gepa"):
        meter.calls += 5
        time.sleep(0.6)
    assert reports[0]
    assert (reports[0].done, reports[0].calls, reports[0].seconds_left) == (5, 12, None)
    assert "making gepa: 5 calls so far after" in str(reports[0])


def test_what_is_soon_over_is_not_told(server: LLMServer) -> None:
    assert evaluated(server) == []


def test_reports_that_fail_leave_the_work_alone(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints = []
    monkeypatch.setattr(threading, "excepthook", complaints.append)

    def broken(progress: Progress | None) -> None:
        raise OSError("no disk")

    with tracking(Meter(10, 10), broken) as tracker, tracker.phase("incumbent on dev", 2) as answered:
        time.sleep(0.6)
        answered()
    assert len(complaints) == 1


# --- where other processes read it ---


def stored(instance: dg.DagsterInstance, text: str) -> None:
    instance.daemon_cursor_storage.set_cursor_values({"autoopt/progress/acme/routing": text})


@given(text=st.text() | st.recursive(st.none() | st.floats() | st.text(), lambda each: st.lists(each) | st.dictionaries(
    st.sampled_from(["run_id", "at", "progress", "phase", "done", "total", "x"]), each)).map(json.dumps))  # fmt: skip
def test_whatever_stands_there_is_no_error(text: str) -> None:
    assert telling._parse(text) is None


HOSTILE = {"phase": "x", "done": 1, "total": 2, "calls": 3, "tokens": 4, "seconds": 5.0}


@pytest.mark.parametrize(
    "change",
    [{"done": -1}, {"seconds": float("nan")}, {"seconds": -1}, {"calls": 10**30}, {"phase": "x" * 5000}, {"more": 1}],
)
def test_what_cannot_have_been_written_by_a_run_is_not_shown(instance: dg.DagsterInstance, change: dict) -> None:
    run = failed_run(instance, "acme", ["routing"])
    told = {"run_id": run, "at": "2026-01-01T00:00:00Z", "progress": HOSTILE}
    stored(instance, json.dumps(told))
    assert read_progress(instance, {("acme", "routing"): run}).keys() == {("acme", "routing")}
    stored(instance, json.dumps(told | {"progress": HOSTILE | change}))
    assert read_progress(instance, {("acme", "routing"): run}) == {}


def test_what_an_earlier_run_left_is_not_shown(instance: dg.DagsterInstance) -> None:
    run = failed_run(instance, "acme", ["routing"])
    told = RunProgress(run_id=run, at=datetime.now(UTC), progress=Progress.model_validate(HOSTILE))
    stored(instance, told.model_dump_json())
    assert read_progress(instance, {("acme", "routing"): "another"}) == {}
    assert read_module_progress(instance, "acme", "routing") is None


def test_thousands_are_read_at_once(instance: dg.DagsterInstance) -> None:
    told = RunProgress(run_id="r", at=datetime.now(UTC), progress=Progress.model_validate(HOSTILE)).model_dump_json()
    rows = {f"autoopt/progress/t{i}/routing": told for i in range(0, 40_000, 2)}
    instance.daemon_cursor_storage.set_cursor_values(dict(list(rows.items())[:500]))
    found = read_progress(instance, {(f"t{i}", "routing"): "r" for i in range(40_000)})
    assert len(found) == 500


def test_what_was_not_heard_of_for_a_while_says_so() -> None:
    now = datetime.now(UTC)
    told = RunProgress(run_id="r", at=now - timedelta(minutes=5), progress=Progress.model_validate(HOSTILE))
    assert told.describe(now).endswith("; nothing was heard since, 5 min ago")
    assert "heard" not in told.describe(now - timedelta(minutes=5))


# --- a run with a slow model, from outside ---


@pytest.fixture
def slow(store: TenantConfigStore, phoenix: Phoenix, server: LLMServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tenant whose model takes its time."""
    end = datetime.now(UTC)
    if phoenix.project("slow-cogniverse-routing") is None:
        send_sample_traffic(phoenix, SLOW, SLOW.traces, start=end - timedelta(hours=3), end=end, seed=1)
    lm = LMSettings(model="openai/slow", api_base=server.url, concurrency=2)
    write_config(store, sample_config(SLOW).model_copy(update={"lm": lm}))
    return SLOW.tenant_id


def until(found: Callable[[], object], shown: Callable[[], str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, "not seen: " + shown()
        time.sleep(0.2)


class Terminal:
    """What a program writes to a terminal of 80 columns."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self.written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.written += os.read(self._ours, 65536)
            except OSError:
                return

    def close(self) -> None:
        os.close(self.theirs)
        self._reader.join(10)
        os.close(self._ours)

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written.decode())


def test_a_command_draws_a_bar_and_others_see_how_far_its_run_is(home: Path, slow: str, server: LLMServer) -> None:
    server.trouble = [0.7] * 10_000
    terminal = Terminal()
    command = [AUTOOPT, "trigger", "--tenant-id", slow, "--module", "routing"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal.theirs, env=environment) as running:
        try:
            until(lambda: re.search(r"routing: incumbent on dev, \d+ of", terminal.text), lambda: terminal.text)
            assert re.search(r"\d+ calls and [\d,]+ tokens in all, \d\.\d a second, \d+ s left", terminal.text)
            modules = {each["module"]: each for each in json.loads(autoopt("status", slow, "--json"))["modules"]}
            progress = modules["routing"]["progress"]
            assert progress["phase"] == "incumbent on dev"
            assert 4 <= progress["done"] <= server.calls
            assert progress["done"] * TOKENS <= progress["tokens"] <= server.calls * TOKENS
            assert progress["rate"] == pytest.approx(2 / 0.7, rel=0.4)
            assert modules["modality"]["progress"] is None
            sentence = rf"incumbent on dev: \d+ of {progress['total']} after \d+ s; \d+ calls and"
            assert re.search(sentence, " ".join(autoopt("why", slow, "routing").split()))
            assert "incumbent on dev" in autoopt("status", slow)
            with visiting(home) as browser:
                page = browser.get(f"/tenants/{slow}/modules/routing")
                assert re.search(rf"incumbent on dev \d+ of {progress['total']} Time left \d+ s", text_of(page))
                part = browser.get(f"/tenants/{slow}/modules/routing/progress", headers={"hx-request": "true"})
                assert f'max="{progress["total"]}"' in part.text
        finally:
            running.send_signal(signal.SIGINT)
            lines = (running.stdout.read() if running.stdout else b"").decode()
    terminal.close()
    assert "reading traces" in lines
    assert "incumbent on dev" not in lines
    with open_instance(home) as instance:
        assert read_module_progress(instance, slow, "routing") is None
        assert [*instance.daemon_cursor_storage.get_cursor_values({f"autoopt/progress/{slow}/routing"}).values()] == [
            ""
        ]


def test_without_a_terminal_the_lines_of_the_runs_log_say_how_far_it_is(
    impatient: None, home: Path, slow: str, server: LLMServer
) -> None:
    server.trouble = [0.1] * 10_000
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if sum("progress: " in each for each in lines) == 2:  # enough was seen
            server.always = 401
            server.trouble.clear()

    with open_instance(home) as instance:
        register_tenant(instance, slow)
        ended = run_in_process(defs, instance, slow, ["routing"], {}, say)
        logged = [entry.user_message for entry in instance.all_logs(ended.run_id) if entry.dagster_event is None]
    told = [line for line in lines if "progress: " in line]
    assert all(re.match(r"routing: progress: incumbent on dev: \d+ of \d+ after", line) for line in told)
    assert [line.removeprefix("routing: ") for line in told] == [line for line in logged if "progress: " in line]
    assert len(told) >= 2
