"""Asking a program twice: what is reckoned from it, and `autoopt doctor --aa` on spans in a real Phoenix."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, sample_config, send_sample_traffic
from autoopt_pipeline.evaluation.answer_noise import (
    COUNTLESS,
    cost,
    describe_gate_impact,
    describe_repetition,
    interval,
    newest,
    repetition,
)
from autoopt_pipeline.evaluation.cases import ScoredAnswer
from autoopt_pipeline.evaluation.runner import Answer
from autoopt_pipeline.evaluation.statistics import cases_needed
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.run_history.lm_usage import read_usage
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import autoopt
from tests.support.llm_server import LLMServer, llm_server
from tests.support.sample_decisions import example
from tests.support.stored_programs import made_program, manifest_of

UNSTEADY = replace(SAMPLE_TENANTS[0], tenant_id="unsteady", traces=120)
NO_ANSWER = Answer(None, None)


def said(*agents: str | None) -> list[Answer]:
    return [NO_ANSWER if agent is None else Answer({"agent": agent}, 0.9) for agent in agents]


def graded(*scores: float) -> list[ScoredAnswer]:
    return [ScoredAnswer(score, "a", 0.9) for score in scores]


def test_answers_scores_and_what_cannot_be_read_are_counted_apart() -> None:
    answers = said("a", "a", "b", None, None), said("a", "b", "c", "a", None)
    found = repetition(answers, (graded(1, 1, 0, 0, 0), graded(1, 0, 0, 1, 0)))
    assert (found.asked, found.differing, found.rescored, found.unreadable) == (5, 3, 2, 2)
    assert found.spread == pytest.approx(2 / 5)


def test_nothing_that_was_asked_is_no_repetition() -> None:
    with pytest.raises(ValueError, match="there are no answers to compare"):
        repetition(([], []), ([], []))


@pytest.mark.parametrize(
    ("seen", "of", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I: Wilson's interval without a correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(seen: int, of: int, low: float, high: float) -> None:
    assert interval(seen / of, of) == pytest.approx((low, high), abs=5e-5)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.0001, 0.05))
def test_more_noise_never_takes_fewer_traces(one: float, other: float, alpha: float) -> None:
    less, more = sorted((one, other))
    assert cost(0.0, alpha).needed == cost(0.0, alpha).needed_without_noise <= cost(less, alpha).needed
    assert cost(less, alpha).needed <= cost(more, alpha).needed
    assert 0 <= cost(less, alpha).noise <= cost(more, alpha).noise < 1


@pytest.mark.parametrize("flips", [0.05, 0.2])
def test_what_is_foretold_of_the_gate_is_what_a_model_that_flips_does(flips: float) -> None:
    """Two askings of one program are enough to tell how often candidate and incumbent will differ."""
    rng = random.Random(1)
    programs = [(1, 1)] * 60 + [(0, 1)] * 10 + [(1, 0)] * 5 + [(0, 0)] * 25

    def asked(right: int) -> int:
        """A flipped answer is one of four others, of which one is right where the answer was wrong."""
        return right if rng.random() >= flips else int(not right and rng.random() < 0.25)

    rounds = 1500
    twice = [asked(old) != asked(old) for _ in range(rounds) for old, _ in programs]
    compared = [(asked(old), asked(new)) for _ in range(rounds) for old, new in programs]
    expected = cost(sum(twice) / len(twice), 0.02)
    gain = sum(new - old for old, new in compared) / len(compared)
    assert expected.gain == pytest.approx(gain, abs=0.005)
    spread = sum(old != new for old, new in compared) / len(compared)
    assert expected.needed == pytest.approx(cases_needed(gain, 0.02, spread), rel=0.15)


def test_a_model_that_answers_by_tossing_a_coin_proves_nothing() -> None:
    assert cost(0.5, 0.02).needed == cost(1.0, 0.02).needed == COUNTLESS


def test_words_and_numbers() -> None:
    same = repetition((said(*"a" * 100), said(*"a" * 100)), (graded(*[1] * 100), graded(*[1] * 100)))
    assert describe_repetition(same) == (
        "repeatable: all 100 answers were the same the second time; with 95 % confidence, at most 3.7 % of all "
        "answers differ"
    )
    assert describe_gate_impact(same, 0.019) == (
        "effect on the gate: a candidate that fixes 10.0 % of traces and breaks 5.0 % is proven by about 508 held-out "
        "traces at alpha 0.019, or by 644 if as many differ as these traces allow for"
    )
    answers = said(*"a" * 100), said(*"b" * 7, *"a" * 93)
    some = repetition(answers, (graded(*[1] * 100), graded(*[0] * 5, *[1] * 95)))
    assert describe_repetition(some) == (
        "7 of 100 answers differ the second time, 5 of them in score (7.0 %, 95 % interval 3.4 % to 13.7 %)"
    )
    assert describe_gate_impact(some, 0.019) == (
        "effect on the gate: a candidate that fixes 10.0 % of traces and breaks 5.0 % shows 4.7 of its 5 points, "
        "because 23.0 % of the differences are noise, and is proven by about 697 held-out traces (585 to 998) at "
        "alpha 0.019 instead of 508. Noise hides gains but fakes none, because it affects both programs"
    )
    toss = repetition((said(*"ab" * 50), said(*"b" * 100)), (graded(*[1, 0] * 50), graded(*[0] * 100)))
    assert "is proven by over 100,000 held-out traces" in describe_gate_impact(toss, 0.019)


def test_the_newest_are_asked_each_query_once_and_no_demo() -> None:
    examples = [
        example(text, minute=minute) for minute, text in enumerate(["Where is it", "old", "demo", "where is it"])
    ]
    assert [each.query for each in newest(examples, {"Demo"}, 2)] == ["where is it", "old"]
    assert [each.query for each in newest(examples, set(), 1)] == ["where is it"]


@pytest.fixture(scope="module")
def traffic(phoenix: Phoenix) -> None:
    end = datetime.now(UTC)
    send_sample_traffic(phoenix, UNSTEADY, UNSTEADY.traces, start=end - timedelta(hours=3), end=end, seed=1)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[LLMServer]:
    monkeypatch.setenv("UNSTEADY_API_KEY", "sk-unsteady")
    with llm_server() as server:
        yield server


def configure(store: TenantConfigStore, llm: LLMServer | None = None, **fields: Any) -> None:
    """The tenant, asking the server one request at a time, 20 traces at most unless told otherwise."""
    lm = llm and {
        "model": "openai/some-model",
        "api_base": llm.url,
        "api_key_env": "UNSTEADY_API_KEY",
        "concurrency": 1,
        **(fields.pop("lm", None) or {}),
    }
    more = {"budget": {"max_lm_calls": 40}, **fields, "lm": lm}
    write_config(store, RoutingConfigUnified.model_validate({**sample_config(UNSTEADY).model_dump(), **more}))


def aa(*, status: int = 0, module: str = "routing") -> list[dict]:
    return json.loads(autoopt("doctor", "--aa", UNSTEADY.tenant_id, module, "--json", status=status))["findings"]


def answering(agent: str) -> str:
    return (
        "[[ ## reasoning ## ]]\nwell\n\n"
        f"[[ ## agent ## ]]\n{agent}\n\n[[ ## confidence ## ]]\n0.9\n\n[[ ## completed ## ]]"
    )


def test_the_second_asking_really_asks(traffic: None, store: TenantConfigStore, llm: LLMServer) -> None:
    configure(store, llm)
    asked, answers, gate = aa()
    assert llm.calls == 40
    assert asked["what"] == (
        "unsteady/routing: the baseline is asked the newest 20 traces twice by openai/some-model, 40 LM calls"
    )
    assert answers["what"].startswith("repeatable: all 20 answers were the same")
    assert "at alpha 0.019" in gate["what"]
    assert {each["check"] for each in (asked, answers, gate)} == {"repeatability"}
    assert {each["status"] for each in (asked, answers, gate)} == {"ok"}


def test_answers_that_differ_are_counted_and_warned_of(traffic: None, store: TenantConfigStore, llm: LLMServer) -> None:
    configure(store, llm)
    llm.trouble = [*[answering("search_agent")] * 20, *[answering("support_agent")] * 5, "what?"]
    llm.trouble += [answering("search_agent")] * 14
    _, answers, gate = aa()
    assert answers["status"] == "warn"
    assert answers["what"].startswith("6 of 20 answers differ the second time")
    assert answers["what"].endswith("; 1 of 20 could not be read")
    assert answers["remedy"].startswith("serve it so that it repeats itself")
    assert "of the differences are noise" in gate["what"]


def test_a_temperature_is_named_as_the_cause(traffic: None, store: TenantConfigStore, llm: LLMServer) -> None:
    configure(store, llm, lm={"temperature": 0.7})
    llm.trouble = [answering("search_agent")] * 20 + [answering("support_agent")] * 20
    _, answers, _ = aa()
    assert answers["what"].startswith("20 of 20 answers differ")
    assert answers["remedy"].startswith("set lm.temperature to 0 or leave it out: at 0.7")


def test_answers_of_which_none_can_be_read_are_no_repetition(
    traffic: None, store: TenantConfigStore, llm: LLMServer
) -> None:
    configure(store, llm)
    llm.trouble = ["what?"] * 40
    _, failed = aa(status=2)
    assert failed["what"] == "none of 20 answers could be read, so repeatability is unknown"
    assert "--call-lm" in failed["remedy"]


def test_the_active_version_is_asked_and_not_about_its_demos(
    traffic: None, store: TenantConfigStore, home: Path
) -> None:
    configure(store, budget={"max_lm_calls": 6000})
    (without_demos, *_) = aa()
    newest_query = json.loads(
        autoopt("traces", "sample", UNSTEADY.tenant_id, "--module", "routing", "-n", "40", "--json")
    )
    queries = [each["inputs"]["query"] for each in newest_query["modules"]["routing"] if each["label"]]
    program = made_program(UNSTEADY.tenant_id, demos=queries[:3])
    artifacts = VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), UNSTEADY.tenant_id, "routing")
    artifacts.save(program, manifest_of(program, "v1"))
    artifacts.transition("v1", expected=None, actor="t", reason="")
    (asked, *_) = aa()
    assert "the baseline is asked the newest" in without_demos["what"]
    assert "v1 is asked the newest" in asked["what"]


def test_a_composed_module_is_asked_as_a_whole(traffic: None, store: TenantConfigStore) -> None:
    configure(store)
    asked, answers, _ = aa(module="unified")
    assert "the newest 6 traces twice by stand-in, 36 LM calls" in asked["what"]
    assert answers["what"].startswith("repeatable")


def test_what_was_asked_counts_in_the_day_and_a_day_that_is_spent_asks_nothing(
    traffic: None, store: TenantConfigStore, llm: LLMServer, home: Path
) -> None:
    configure(store, llm, daily_budget={"max_lm_calls": 21})
    (asked, *_) = aa()
    assert "the newest 10 traces twice" in asked["what"]
    with open_instance(home) as instance:
        spent = read_usage(instance, ["routing"], since=datetime.now(UTC) - timedelta(hours=1))
    assert (spent[UNSTEADY.tenant_id].lm_calls, llm.calls) == (20, 20)
    (asked, *_) = aa(status=2)
    assert "1 LM calls do not pay for asking one trace twice" in asked["what"]
    configure(store, llm, daily_budget={"max_lm_calls": 20})
    (failed,) = aa(status=2)
    assert "20 of 20 LM calls a day are spent" in failed["what"]
    assert llm.calls == 20


def test_without_dagster_a_daily_budget_cannot_be_kept(
    traffic: None, store: TenantConfigStore, llm: LLMServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(store, llm)
    (home / "dagster.yaml").unlink()
    monkeypatch.delenv("DAGSTER_HOME")
    assert aa()[1]["what"].startswith("repeatable")
    configure(store, llm, daily_budget={"max_tokens": 10**9})
    (failed,) = aa(status=2)
    assert "the rest of the day's budget is recorded in Dagster, which is not set up here" in failed["what"]
    assert llm.calls == 40


@pytest.mark.parametrize(
    ("trouble", "fields", "words"),
    [
        ([401], {}, "LM401"),
        ([], {"budget": {"max_lm_calls": 40, "max_tokens": 20}}, "the budget does not pay for asking 20 traces twice"),
    ],
)
def test_what_stops_the_asking_is_one_line_and_what_was_spent_is_entered(
    traffic: None,
    store: TenantConfigStore,
    llm: LLMServer,
    home: Path,
    trouble: list[int | str | float],
    fields: dict,
    words: str,
) -> None:
    configure(store, llm, **fields)
    llm.trouble = [*trouble]
    *_, last = autoopt("doctor", "--aa", UNSTEADY.tenant_id, "routing", status=2).splitlines()[:-1]
    assert last.startswith("fail  repeatability  ")
    assert "sk-unsteady" not in last
    assert (words if words != "LM401" else "language model openai/some-model") in last
    with open_instance(home) as instance:
        spent = read_usage(instance, ["routing"], since=datetime.now(UTC) - timedelta(hours=1))
    assert spent[UNSTEADY.tenant_id].lm_calls == llm.calls > 0


@pytest.mark.parametrize(
    ("tenant", "module", "words"),
    [
        ("unstaedy", "routing", "unstaedy"),
        ("unsteady", "rooting", "rooting"),
        ("quiet", "routing", "no project quiet-cogniverse-routing"),
    ],
)
def test_a_name_that_nothing_has_is_told(
    traffic: None, store: TenantConfigStore, tenant: str, module: str, words: str
) -> None:
    configure(store)
    write_config(store, sample_config(replace(UNSTEADY, tenant_id="quiet")))
    told_as, counts = autoopt("doctor", "--aa", tenant, module, status=2).splitlines()
    assert told_as.startswith("fail  repeatability  ")
    assert words in told_as
    assert counts == "1 failed, 0 warnings"
