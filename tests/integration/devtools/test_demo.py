"""The demo is the end-to-end test: a real Phoenix, a real daemon, real runs in processes of their own."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoopt_pipeline.devtools.traffic import sample_truths
from tests.support.stack_processes import servers

AUTOOPT = Path(sys.executable).parent / "autoopt"
FIELDS = {
    "tenant",
    "module",
    "round",
    "decision",
    "reason",
    "new_traces",
    "examples",
    "incumbent_score",
    "candidate_score",
    "verdict",
    "version",
    "run_id",
    "lm_calls",
    "lm_tokens",
    "language_model",
    "optimizer",
}
QUERIES = 320


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    home, file = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("queries") / "queries.jsonl"
    truths = sample_truths(QUERIES, random.Random(3))
    file.write_text("\n".join(json.dumps({"query": t.query, "agent": t.answers["agent"]}) for t in truths))
    demo = [AUTOOPT, "demo", "--home", home, "--queries", file]
    done = subprocess.run(demo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not servers(home)
    assert "stand-in" in done.stdout
    assert "local router" in done.stdout
    return json.loads((home / "summary.json").read_text())["outcomes"]


def of(outcomes: list[dict], number: int, tenant: str) -> dict[str, dict]:
    return {o["module"]: o for o in outcomes if (o["round"], o["tenant"]) == (number, tenant)}


def test_every_outcome_has_the_same_fields(outcomes: list[dict]) -> None:
    assert all(set(outcome) == FIELDS for outcome in outcomes)


def test_every_outcome_of_a_run_says_who_answered(outcomes: list[dict]) -> None:
    assert {o["language_model"] for o in outcomes if o["run_id"]} == {"stand-in (not a language model)"}


@pytest.mark.parametrize("tenant", ["acme", "globex:support"])
def test_tenants_with_something_to_learn_are_promoted(outcomes: list[dict], tenant: str) -> None:
    routing = of(outcomes, 1, tenant)["routing"]
    assert (routing["decision"], routing["verdict"]) == ("due", "promoted")
    assert routing["candidate_score"] > routing["incumbent_score"] + 0.2
    assert routing["examples"]["holdout"] >= 100
    assert routing["lm_calls"] > 0
    assert routing["run_id"]


def test_a_local_router_is_promoted_without_a_model(outcomes: list[dict]) -> None:
    alone = [o for o in outcomes if o["optimizer"] == "local-router" and o["verdict"] == "promoted"]
    assert alone
    assert all(o["candidate_score"] > o["incumbent_score"] + 0.2 for o in alone)


def test_the_queries_of_a_file_are_played_by_one_more_tenant(outcomes: list[dict]) -> None:
    (played,) = of(outcomes, 1, "from-file").values()
    assert (played["module"], played["new_traces"]) == ("routing", QUERIES)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: JSONDecodeError"),
        ('{"query": "where?", "agent": "no agent, this"}', "line 1: 'no agent, this' is no name of an agent"),
    ],
)
def test_a_file_that_cannot_be_played_is_told_before_anything_starts(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text(line)
    home = tmp_path / "home"
    demo = [AUTOOPT, "demo", "--home", home, "--queries", tmp_path / "queries.jsonl"]
    refused = subprocess.run(demo, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert said in " ".join((refused.stdout + refused.stderr).split())
    assert not home.exists()


def test_labels_that_do_not_depend_on_the_query_are_rejected(outcomes: list[dict]) -> None:
    assert {o["verdict"] for o in of(outcomes, 1, "umbrella").values()} == {"rejected"}


def test_a_tenant_without_reviews_waits_for_a_few_and_is_promoted_by_them(outcomes: list[dict]) -> None:
    assert {o["verdict"] for o in of(outcomes, 1, "initech").values()} == {"awaiting_reviews"}
    assert {o["decision"] for o in of(outcomes, 2, "initech").values()} == {"awaiting_reviews"}
    reviewed = of(outcomes, 3, "initech")
    assert reviewed["routing"]["verdict"] == "promoted", reviewed
    assert {o["lm_calls"] for o in reviewed.values()} == {0}


def test_the_others_say_why_they_were_not_run(outcomes: list[dict]) -> None:
    assert {o["decision"] for o in of(outcomes, 1, "newcomer").values()} == {"too_few_traces"}
    assert {o["new_traces"] for o in of(outcomes, 1, "newcomer").values()} == {40}
    assert {o["decision"] for o in of(outcomes, 1, "dormant").values()} == {"disabled"}


def test_all_modules_of_a_tenant_share_one_run(outcomes: list[dict]) -> None:
    first = [o for o in outcomes if o["round"] == 1 and o["run_id"]]
    assert len({o["run_id"] for o in first}) == len({o["tenant"] for o in first}) == 5
    assert set(of(outcomes, 1, "acme")) == {"modality", "routing", "cross_modal", "workflow", "unified"}


def test_the_five_modules_run_and_most_find_something_to_learn(outcomes: list[dict]) -> None:
    verdicts = {module: o["verdict"] for module, o in of(outcomes, 1, "acme").items()}
    assert set(verdicts.values()) <= {"promoted", "rejected", "inconclusive"}
    assert list(verdicts.values()).count("promoted") >= 3


def test_without_new_traffic_nothing_is_launched_for_want_of_traces(outcomes: list[dict]) -> None:
    second = [o for o in outcomes if o["round"] == 2]
    assert not any(o["run_id"] for o in second)
    others = [o for o in second if o["tenant"] not in {"dormant", "initech"}]
    assert {o["decision"] for o in others} == {"too_few_traces"}


def test_new_traffic_and_reviews_launch_their_own_tenants_alone(outcomes: list[dict]) -> None:
    launched = {o["tenant"] for o in outcomes if o["round"] == 3 and o["run_id"]}
    assert launched == {"acme", "initech"}
    # The sensor may tick while they arrive; a hundred are enough.
    assert 100 <= of(outcomes, 3, "acme")["routing"]["new_traces"] <= 150


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    # As a script's background command: with SIGINT ignored at first.
    ignoring = ["bash", "-c", "trap '' INT; exec \"$@\"", "_"]
    demo = subprocess.Popen(
        [*ignoring, AUTOOPT, "demo", "--home", tmp_path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300  # servers are slow to start where other tests take both cores
    while demo.poll() is None and len(servers(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(servers(tmp_path)) >= 3  # Phoenix, the daemon and its code server
    demo.send_signal(number)
    time.sleep(0.5)
    demo.send_signal(number)  # the impatient press twice
    _, err = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert b"Traceback" not in err
    assert not servers(tmp_path)
