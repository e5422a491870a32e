"""A run that dies is not paid twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoopt_pipeline.evaluation.runner import answer_all, costs_of
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.optimization.answer_checkpoint import SAVE_AFTER, AnswerCheckpoint
from autoopt_pipeline.registry.program_cost import ProgramCost
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import LMPrice, LMSettings
from tests.support.labeled_requests import LABELS, examples
from tests.support.llm_server import LLMServer, llm_server
from tests.support.project import PROJECT

ROUTING = get_module("routing")

RUN = """
import sys
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.optimization.answer_checkpoint import AnswerCheckpoint
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.tenants.config import LMSettings
from autoopt_pipeline.devtools.traffic import TrafficProfile
from tests.support.optimizing import decisions, job

url, root = sys.argv[1:]
artifacts = VersionStore(ObjectStore(root), "acme", "routing")
kept = AnswerCheckpoint(artifacts)
lm = metered_lm(LMSettings(model="openai/test", api_base=url), Meter(6000, 10**9), answers=kept)
report = optimize(job(decisions(290, TrafficProfile(reviewed=1.0))), lm, artifacts)
print(report.verdict.value, artifacts.versions()[-1].program_sha256, lm.meter.calls)
"""


def run(server: LLMServer, root: Path) -> "subprocess.Popen[str]":
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONHASHSEED": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, server.url, str(root)], stdout=subprocess.PIPE, text=True, env=env
    )


def test_a_run_killed_after_nine_tenths_of_its_calls_repeats_less_than_a_tenth_of_them(
    server: LLMServer, tmp_path: Path
) -> None:
    whole = run(server, tmp_path / "whole")
    verdict, program, calls = whole.communicate(timeout=400)[0].split()
    assert int(calls) == server.calls

    server.sent.clear()
    killed = run(server, tmp_path / "killed")
    while server.calls < 0.9 * int(calls) and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    paid = server.calls
    assert paid < int(calls)

    again = run(server, tmp_path / "killed")
    assert again.communicate(timeout=400)[0].split()[:2] == [verdict, program]
    repeated = server.calls - int(calls)
    assert repeated <= 0.1 * paid


def ask(
    server: LLMServer, artifacts: VersionStore, *, model: str = "openai/test", temperature: float | None = None
) -> int:
    """How many requests of fifty reach the server."""
    before = server.calls
    settings = LMSettings(model=model, api_base=server.url, temperature=temperature)
    lm = metered_lm(settings, Meter(100, 10**9), answers=AnswerCheckpoint(artifacts))
    answer_all(ROUTING, ROUTING.build_program(LABELS), examples(ROUTING, 50), lm)
    return server.calls - before


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_only_what_was_not_saved_yet_is_asked_again(
    server: LLMServer, artifacts: VersionStore, temperature: float | None
) -> None:
    assert ask(server, artifacts, temperature=temperature) == 50
    assert ask(server, artifacts, temperature=temperature) < SAVE_AFTER
    AnswerCheckpoint(artifacts).drop()
    assert ask(server, artifacts, temperature=temperature) == 50


def test_the_answers_of_a_lost_run_have_their_tokens_and_seconds(server: LLMServer, artifacts: VersionStore) -> None:
    server.trouble = [0.03] * 50

    def cost(kept: AnswerCheckpoint) -> ProgramCost:
        settings = LMSettings(model="openai/test", api_base=server.url, price=LMPrice(input=1, output=2))
        lm = metered_lm(settings, Meter(100, 10**9), answers=kept)
        return costs_of({"x": answer_all(ROUTING, ROUTING.build_program(LABELS), examples(ROUTING, 50), lm)})["x"]

    first, again = cost(AnswerCheckpoint(artifacts)), cost(kept := AnswerCheckpoint(artifacts))
    assert (first.decisions, first.timed) == (again.decisions, again.timed) == (50, 50)
    assert kept.loaded > 30
    assert again.seconds_p50 is not None
    assert again.seconds_p50 >= 0.03
    assert (first.tokens, first.dollars) == (15, pytest.approx(20e-6))
    assert (again.tokens, again.dollars) == (first.tokens, first.dollars)


def test_another_model_and_another_endpoint_give_answers_of_their_own(
    server: LLMServer, artifacts: VersionStore
) -> None:
    ask(server, artifacts)
    assert ask(server, artifacts, model="openai/other") == 50
    with llm_server() as elsewhere:
        assert ask(elsewhere, artifacts) == 50


def test_answers_that_are_damaged_are_asked_again(server: LLMServer, artifacts: VersionStore, tmp_path: Path) -> None:
    ask(server, artifacts)
    for chunk in (tmp_path / "acme" / "routing" / "answers").iterdir():
        chunk.write_bytes(b'{"00": {"text": "x", "run": "import os"}}')
    assert ask(server, artifacts) == 50


def test_dropping_leaves_nothing(server: LLMServer, artifacts: VersionStore, tmp_path: Path) -> None:
    ask(server, artifacts)
    AnswerCheckpoint(artifacts).drop()
    assert not (tmp_path / "acme" / "routing" / "answers").exists()
