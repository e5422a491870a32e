"""`autoopt review` on real traces in a real Phoenix, by keys and by files."""

import csv
import json
import os
import pty
import re
import select
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.reviews.claims import claim
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.reader import read_decisions
from tests.support.command_line import AUTOOPT, autoopt
from tests.support.optimizing import CONFIG, END, ROUTING, START, job, stand_in
from tests.support.reviewing import Truths, compare, send_unreviewed
from tests.support.tenant_history import configure

AGENTS = [{"name": name, "description": text} for name, text in SAMPLE_AGENTS.items()]


@dataclass(frozen=True)
class World:
    tenant: str
    artifacts: VersionStore
    truths: Truths
    version: str
    phoenix: Phoenix


@pytest.fixture
def world(home: Path, phoenix: Phoenix, tenant: str, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    (home / ".autoopt").mkdir()
    configure(open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"), tenant, agents=AGENTS)
    truths = send_unreviewed(phoenix, tenant)
    artifacts = VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), tenant, "routing")
    return World(tenant, artifacts, truths, compare(phoenix, tenant, artifacts), phoenix)


def verdict(world: World) -> tuple[Verdict, str]:
    """What the next run decides, which asks no model."""
    project = world.phoenix.project(project_name(world.tenant))
    assert project
    decisions = read_decisions(world.phoenix, project, ROUTING, start=START, end=END)
    config = CONFIG.model_copy(update={"tenant_id": world.tenant})
    report = optimize(job(decisions, config, "decides"), stand_in(), world.artifacts)
    assert report.lm_calls == 0
    return report.verdict, report.reason


def typing(world: World, reviewer: str) -> Generator[str, str, None]:
    """A person at a terminal who sees one question after the other, as text, and presses the key that is sent."""
    terminal, child = pty.openpty()
    process = subprocess.Popen(
        [AUTOOPT, "review", world.tenant, "--by", reviewer],
        stdin=child, stdout=child, stderr=child, env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}, close_fds=True,
    )  # fmt: skip
    os.close(child)
    screen = ""
    try:
        while True:
            ready, _, _ = select.select([terminal], [], [], 60)
            assert ready, f"nothing more came after {screen!r}"
            try:
                screen += re.sub(r"\x1b\[[0-9;]*m", "", os.read(terminal, 65536).decode(errors="replace"))
            except OSError:  # the process has ended
                yield screen
                return
            if screen.rstrip().endswith(("q stop", "no reason)")):
                key = yield screen
                screen = ""
                os.write(terminal, key.encode())
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def query_on(screen: str) -> str:
    query = re.search(r"query: (.*)", screen)
    assert query, screen
    return query[1].strip()


def right_key(world: World, screen: str) -> str:
    agent = world.truths.agent(query_on(screen))
    key = re.search(rf"^\s*(\S)  {agent}\b", screen, re.M)
    assert key, screen
    return key[1]


def test_a_person_reviews_by_keys_until_the_next_run_promotes(world: World) -> None:
    keys = typing(world, "ada")
    screen = next(keys)
    assert re.search(r"0 of \d+ reviewed, about \d+ min left", screen)
    assert world.version not in screen  # which program said what is not shown
    for _ in range(50):
        screen = keys.send(right_key(world, screen))
    keys.close()
    queue = json.loads(autoopt("review", world.tenant, "--json"))[0]
    assert (queue["module"], queue["candidate"]) == ("routing", world.version)
    assert queue["reviewed"] == 50
    decided, reason = verdict(world)
    assert decided is Verdict.PROMOTED, reason


def test_undo_goes_back_and_a_second_answer_replaces_the_first(world: World) -> None:
    keys = typing(world, "ada")
    first = next(keys)
    second = keys.send("1")
    again = keys.send("u")
    assert query_on(again) == query_on(first)
    third = keys.send("c")
    assert "Why can nobody tell?" in third
    assert query_on(keys.send("no idea\n")) == query_on(second)
    assert "reviewed" not in keys.send("q")
    assert json.loads(autoopt("review", world.tenant, "--json"))[0]["reviewed"] == 1


def test_what_somebody_else_looks_at_is_not_handed_out(world: World, home: Path) -> None:
    traces = world.artifacts.sequential_test()[-1].drawn
    assert claim(ObjectStore(str(home / ".autoopt" / "artifacts")), world.tenant, "routing", traces[0].span_id, "bob")
    ada, carl = typing(world, "ada"), typing(world, "carl")
    shown = {query_on(next(person)) for person in (ada, carl)}
    assert len(shown) == 2


@pytest.mark.parametrize("name", ["questions.jsonl", "questions.csv"])
def test_questions_are_exported_and_answers_imported(world: World, name: str) -> None:
    assert "fill in 'answer'" in autoopt("review", world.tenant, "--export", name)
    path = Path(name)
    if name.endswith("csv"):
        with path.open() as file:
            rows = list(csv.DictReader(file))
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["answer"] = world.truths.agent(row["query"])
    if name.endswith("csv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    assert f"{len(rows)} reviews are stored" in autoopt("review", world.tenant, "--import", name, "--by", "ada")
    assert "nothing waits for reviews" in autoopt("review", world.tenant, "--list")
    assert verdict(world)[0] is Verdict.PROMOTED


def test_a_bad_file_is_refused_with_its_line_and_nothing_is_stored(world: World) -> None:
    autoopt("review", world.tenant, "--export", "q.jsonl")
    rows = [json.loads(line) for line in Path("q.jsonl").read_text().splitlines()]
    for change, words in (
        (
            {"answer": "no_such_agent"},
            r"line 2: 'no_such_agent' is no answer of \S+/routing -> give one of search_agent",
        ),
        ({"answer": "search_agent", "span_id": "0" * 16}, "line 2: nobody asks about span '0{16}'"),
        ({"answer": "search_agent", "tenant": "other"}, "line 2: nobody asks about span"),
    ):
        Path("q.jsonl").write_text(
            json.dumps(rows[0] | {"answer": "search_agent"}) + "\n" + json.dumps(rows[1] | change)
        )
        error = autoopt("review", world.tenant, "--import", "q.jsonl", status=2)
        assert re.search(words, error), error
    Path("q.jsonl").write_text("{oops")
    assert "line 1" in autoopt("review", world.tenant, "--import", "q.jsonl", status=2)
    assert json.loads(autoopt("review", world.tenant, "--json"))[0]["reviewed"] == 0


def test_without_a_terminal_it_says_what_else_there_is(world: World) -> None:
    error = autoopt("review", world.tenant, status=2)
    assert "there is no terminal to ask at -> use --list, or --export and --import" in error


def test_a_tenant_that_waits_for_nobody_says_so(home: Path, tenant: str) -> None:
    configure(open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}"), tenant, agents=AGENTS)
    assert "nothing waits for reviews" in autoopt("review", tenant)
