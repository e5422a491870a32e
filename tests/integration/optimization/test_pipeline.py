"""The optimization as a whole, with DSPy's real optimizers and no Phoenix and no Dagster."""

import random
import re
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dspy
import pytest
from dspy.utils.exceptions import LMInvalidRequestError

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, TrafficProfile
from autoopt_pipeline.errors import (
    ArtifactStoreUnavailable,
    InvalidArtifact,
    InvalidConfig,
    LMNotConfigured,
    LMUnavailable,
)
from autoopt_pipeline.evaluation.alpha_ledger import alpha_of_charge
from autoopt_pipeline.evaluation.runner import answer_all, grade, using
from autoopt_pipeline.evaluation.split import split_examples
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Annotation, Label, LoggedDecision, Provenance
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.preparation import MAX_DEV, MAX_HOLDOUT, MAX_TRAIN
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.serialization import deserialize, serialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import LMPrice, LMSettings, RolloutPolicy, RoutingConfigUnified, with_field
from autoopt_pipeline.tenants.labels import labels_of
from tests.support.llm_server import LLMServer
from tests.support.optimizing import CONFIG, END, ROUTING, decisions, job, stand_in
from tests.support.sample_decisions import example
from tests.support.stored_programs import manifest_of


@pytest.fixture(scope="module")
def traffic() -> list[LoggedDecision]:
    return decisions(450)


@pytest.fixture(scope="module")
def promoted(traffic: list[LoggedDecision], tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, VersionStore]:
    artifacts = VersionStore(ObjectStore(str(tmp_path_factory.mktemp("artifacts"))), "acme", "routing")
    return optimize(job(traffic), stand_in(), artifacts), artifacts


def test_where_there_is_something_to_learn_a_better_program_is_promoted(
    promoted: tuple[Report, VersionStore],
) -> None:
    report, artifacts = promoted
    assert report.verdict is Verdict.PROMOTED
    assert report.gate is not None
    assert report.gate.comparison.gain > 0.2
    assert report.gate.comparison.p_value <= report.gate.alpha
    assert report.version == report.active_version
    active = artifacts.active()
    assert active is not None
    assert active.version == report.version
    assert {tried.optimizer for tried in report.tried} >= {"coverage-50", "labeled-few-shot-50", "bootstrap-few-shot-0"}
    assert sum(tried.lm_calls for tried in report.tried) < report.lm_calls
    assert report.stand_in


def test_a_promoted_version_says_which_span_each_demo_came_from(
    promoted: tuple[Report, VersionStore], traffic: list[LoggedDecision]
) -> None:
    report, artifacts = promoted
    manifest = artifacts.manifest(report.version or "")
    assert manifest
    queries = {
        example.span_id: example.query
        for example in ROUTING.build_examples(labels_of(ROUTING, CONFIG), traffic).examples
    }
    demos = artifacts.load(manifest.version).predictors["decide"].demos
    assert [queries[str(source)] for source in manifest.demo_sources["decide"]] == [demo["query"] for demo in demos]


def test_the_cost_of_every_compared_program_is_measured(promoted: tuple[Report, VersionStore]) -> None:
    report, artifacts = promoted
    (manifest,) = artifacts.versions()
    assert manifest.costs == report.costs
    before, after = report.costs["incumbent"], report.costs["candidate"]
    assert before.decisions == before.timed == after.timed == report.examples["holdout"] + report.examples["guard"]
    assert (before.lm_calls, after.lm_calls) == (1, 0)  # a local router won
    assert before.input_tokens > after.input_tokens == 0
    assert (before.dollars, report.lm_dollars, manifest.lm_dollars) == (None, None, None)  # the stand-in has no price
    assert after.dollars == 0
    by_name = {tried.optimizer: tried.cost for tried in report.tried if tried.cost}
    assert by_name["coverage-50"].input_tokens > by_name["coverage-16"].input_tokens > 2 * before.input_tokens
    for tried in report.tried:
        assert tried.cost
        assert (tried.cost.decisions, tried.cost.timed) == (tried.judged_on, tried.judged_on)
    assert [tried["cost"] for tried in manifest.tried] == [tried.as_dict()["cost"] for tried in report.tried]


def test_a_promoted_version_leaves_a_share_to_what_it_replaced(promoted: tuple[Report, VersionStore]) -> None:
    last = promoted[1].last_transition()
    assert last
    assert last.canary == {"baseline": 0.1}


def test_a_canary_is_tried_before_anything_else_is_searched_for(
    traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    config = CONFIG.model_copy(update={"rollout": RolloutPolicy(canary_fraction=0.2)})
    report = optimize(job(traffic, config), stand_in(), artifacts)
    assert report.verdict is Verdict.CANARY
    assert report.active_version is None
    assert "has had 20 % of the requests since" in report.reason
    last = artifacts.last_transition()
    assert last
    assert (last.to_version, last.canary) == (None, {report.version: 0.2})
    meanwhile = optimize(job(traffic, config), lm := stand_in(), artifacts)
    assert (meanwhile.verdict, lm.meter.calls) == (Verdict.CANARY, 0)
    assert str(report.version) in meanwhile.reason


def test_the_manifest_says_how_a_version_came_to_be(promoted: tuple[Report, VersionStore]) -> None:
    report, artifacts = promoted
    (manifest,) = artifacts.versions()
    assert manifest.version == report.version
    assert manifest.parent is None
    assert manifest.stand_in
    assert manifest.window_end == END
    assert manifest.gate["cases"] == report.examples["holdout"]


def test_the_promoted_program_answers_better_than_the_baseline(
    promoted: tuple[Report, VersionStore], traffic: list[LoggedDecision]
) -> None:
    report, artifacts = promoted
    labels = labels_of(ROUTING, CONFIG)
    program = deserialize(ROUTING, labels, artifacts.load(report.version or ""))
    fresh = ROUTING.build_examples(labels, decisions(150, seed=99)).examples
    baseline = ROUTING.build_program(labels)

    def right(answering) -> float:
        answers = answer_all(ROUTING, answering, fresh, stand_in())
        return sum(graded.score for graded in grade(ROUTING, fresh, answers))

    assert right(program) > 1.5 * right(baseline)


def test_the_same_traces_give_byte_identical_programs(
    promoted: tuple[Report, VersionStore], traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    report, first = promoted
    shuffled = random.Random(5).sample(traffic, len(traffic))
    again = optimize(job(shuffled, run_id="another"), stand_in(), artifacts)
    assert again.version == report.version
    assert first.load(report.version or "").encode() == artifacts.load(again.version or "").encode()


def test_where_labels_do_not_depend_on_the_query_nothing_is_promoted(artifacts: VersionStore) -> None:
    report = optimize(job(decisions(450, TrafficProfile(answers_depend_on_query=False))), stand_in(), artifacts)
    assert report.verdict is Verdict.REJECTED
    assert artifacts.active() is None


def test_the_same_candidate_again_changes_nothing(traffic: list[LoggedDecision], artifacts: VersionStore) -> None:
    first = optimize(job(traffic), stand_in(), artifacts)
    second = optimize(job(traffic, run_id="second"), stand_in(), artifacts)
    assert second.verdict is Verdict.REJECTED
    assert second.active_version == first.version


def test_without_reviews_there_is_no_verdict_on_gain(artifacts: VersionStore) -> None:
    lm = stand_in()
    report = optimize(job(decisions(600, TrafficProfile(reviewed=0, complains=0))), lm, artifacts)
    assert report.verdict is Verdict.AWAITING_REVIEWS
    assert re.match(r"(\d+) of \1 disagreements wait for a review: 0 fixed, 0 broken of ", report.reason)
    assert artifacts.active() is None


def test_complaints_alone_cannot_prove_a_gain(artifacts: VersionStore) -> None:
    report = optimize(job(decisions(600, TrafficProfile(reviewed=0, complains=1))), stand_in(), artifacts)
    assert report.verdict is Verdict.AWAITING_REVIEWS


def test_too_little_data_says_how_much_is_missing(artifacts: VersionStore) -> None:
    report = optimize(job(decisions(150)), stand_in(), artifacts)
    assert report.verdict is Verdict.NOT_ENOUGH_DATA
    assert "of 100 holdout examples" in report.reason


def test_manual_mode_waits_for_approval(traffic: list[LoggedDecision], artifacts: VersionStore) -> None:
    config = with_field(CONFIG, "mode", "propose")
    report = optimize(job(traffic, config), stand_in(), artifacts)
    assert report.verdict is Verdict.AWAITING_APPROVAL
    assert artifacts.active() is None
    assert report.version
    artifacts.transition(report.version, expected=None, actor="marta", reason="looks good")
    active = artifacts.active()
    assert active is not None
    assert active.version == report.version


def test_a_promotion_by_somebody_else_meanwhile_makes_this_one_stale(
    traffic: list[LoggedDecision], artifacts: VersionStore, promoted: tuple[Report, VersionStore]
) -> None:
    other_report, other_artifacts = promoted
    version = other_report.version or ""
    (manifest,) = other_artifacts.versions()
    artifacts.save(other_artifacts.load(version), manifest.model_copy(update={"version": "other"}))

    def promote_the_other(line: str) -> None:
        if line.startswith("finalist"):
            artifacts.transition("other", expected=None, actor="another run", reason="")

    report = optimize(job(traffic), stand_in(), artifacts, log=promote_the_other)
    assert report.verdict is Verdict.STALE
    active = artifacts.active()
    assert active is not None
    assert active.version == "other"


def test_a_spent_budget_ends_the_search_and_keeps_the_best_so_far(
    traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    config = with_field(CONFIG, "budget.max_lm_calls", "560")
    report = optimize(job(traffic, config), stand_in(560), artifacts)
    assert report.verdict is Verdict.PROMOTED
    assert report.lm_calls <= 560
    assert any("the budget ended the search" in note for note in report.notes)
    assert not any(tried.optimizer.endswith("gepa") for tried in report.tried)


def test_a_budget_that_cannot_pay_the_comparison_is_an_error_that_says_how_much(
    traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    config = with_field(CONFIG, "budget.max_lm_calls", "50")
    with pytest.raises(InvalidConfig, match=r"raise budget\.max_lm_calls"):
        optimize(job(traffic, config), stand_in(50), artifacts)
    assert artifacts.ledger() == []


def test_without_agents_routing_cannot_be_optimized(artifacts: VersionStore) -> None:
    with pytest.raises(InvalidConfig, match="tenant bare: routing has 0 agents"):
        optimize(job([], RoutingConfigUnified(tenant_id="bare")), stand_in(), artifacts)


def test_an_agent_that_is_gone_is_neither_learnt_nor_answered(
    promoted: tuple[Report, VersionStore], traffic: list[LoggedDecision]
) -> None:
    report, artifacts = promoted
    left = [Label(name) for name in SAMPLE_AGENTS if name != "search_agent"]
    found = ROUTING.build_examples(left, traffic)
    assert "search_agent" not in {e.label for e in found.examples}
    program = deserialize(ROUTING, left, artifacts.load(report.version or ""))
    assert "search_agent" not in str(program.dump_state())
    answers = answer_all(ROUTING, program, [example("where did we put the poster")], stand_in())
    assert (answers[0].values or {})["agent"] in {label.name for label in left}


def test_a_program_of_another_signature_is_refused(promoted: tuple[Report, VersionStore]) -> None:
    report, artifacts = promoted
    stored = artifacts.load(report.version or "")
    other = replace(get_module("modality"), name="routing")
    with pytest.raises(InvalidArtifact, match="another signature"):
        deserialize(other, other.labels or (), stored)


def test_an_incumbent_that_cannot_be_loaded_is_compared_as_the_baseline_and_said_so(
    traffic: list[LoggedDecision], artifacts: VersionStore, promoted: tuple[Report, VersionStore]
) -> None:
    report, other = promoted
    stored = other.load(report.version or "").model_copy(update={"fingerprint": "older"})
    (manifest,) = other.versions()
    artifacts.save(stored, manifest.model_copy(update={"version": "old", "program_sha256": stored.digest}))
    artifacts.transition("old", expected=None, actor="t", reason="")
    again = optimize(job(traffic), stand_in(), artifacts)
    assert again.verdict is Verdict.PROMOTED
    assert any("another signature" in note for note in again.notes)


def test_queries_that_stand_in_instructions_judge_nobody_and_stop_nothing(
    traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    labels = labels_of(ROUTING, CONFIG)
    examples = ROUTING.build_examples(labels, traffic).examples
    parts = split_examples(examples, max_holdout=MAX_HOLDOUT, max_dev=MAX_DEV, max_train=MAX_TRAIN)
    quoted = next(judged.example.query for judged in parts.holdout if len(judged.example.query.split()) >= 6)
    incumbent = ROUTING.build_program(labels)
    signature = incumbent.predictors()[0].signature
    incumbent.predictors()[0].signature = signature.with_instructions(f"Such as: {quoted}! Choose the one agent.")
    stored = serialize(ROUTING, "acme", labels, incumbent)
    artifacts.save(stored, manifest_of(stored, "old"))
    artifacts.transition("old", expected=None, actor="t", reason="")
    report = optimize(job(traffic), stand_in(), artifacts)
    assert report.gate is not None
    assert report.gate.comparison.cases == len(parts.holdout) - 1
    assert "1 held-out queries were left out because a program's instructions quote them" in report.notes


def test_forgetting_does_not_renew_the_allowance(traffic: list[LoggedDecision], artifacts: VersionStore) -> None:
    optimize(job(decisions(450, TrafficProfile(answers_depend_on_query=False), seed=4)), stand_in(), artifacts)
    looks = len(artifacts.ledger())
    stored = serialize(ROUTING, "acme", labels_of(ROUTING, CONFIG), ROUTING.build_program(labels_of(ROUTING, CONFIG)))
    artifacts.save(stored, manifest_of(stored, "clean"))
    artifacts.transition("clean", expected=None, actor="forget", reason="", resets_alpha_budget=False)
    optimize(job(traffic, run_id="next"), stand_in(), artifacts)
    assert artifacts.ledger()[looks].alpha == alpha_of_charge(looks + 1)
    assert artifacts.ledger()[looks].epoch == 0


def over_http(server: LLMServer, monkeypatch: pytest.MonkeyPatch, max_calls: int = 6000) -> MeteredLM:
    monkeypatch.setenv("TEST_LM_API_KEY", "sk-very-secret")
    settings = LMSettings(model="openai/test", api_base=server.url, api_key_env="TEST_LM_API_KEY", concurrency=4)
    return metered_lm(settings, Meter(max_calls, 10**9))


def test_any_openai_compatible_endpoint_works_and_gets_its_instructions_searched_too(
    server: LLMServer, monkeypatch: pytest.MonkeyPatch, artifacts: VersionStore
) -> None:
    lm = over_http(server, monkeypatch)
    server.trouble = [429, 500, "no fields at all"]
    report = optimize(job(decisions(290, TrafficProfile(reviewed=1.0))), lm, artifacts)
    assert report.verdict is Verdict.PROMOTED
    notes = " ".join([*(tried.optimizer for tried in report.tried), *report.notes])
    assert "+ gepa" in notes
    assert "+ miprov2" in notes
    assert not report.stand_in
    assert server.keys == {"Bearer sk-very-secret"}
    assert lm.meter.tokens == 15 * (server.calls - 2)  # two tries failed, and were repeated


@pytest.mark.parametrize("status", [401, 404])
def test_an_endpoint_that_fails_is_an_error_and_not_a_bad_candidate(
    server: LLMServer,
    monkeypatch: pytest.MonkeyPatch,
    traffic: list[LoggedDecision],
    artifacts: VersionStore,
    status: int,
) -> None:
    server.always = status
    with pytest.raises(LMNotConfigured) as error:
        optimize(job(traffic), over_http(server, monkeypatch), artifacts)
    assert "openai/test" in str(error.value)
    assert "sk-very-secret" not in str(error.value)
    assert artifacts.ledger() == []


@pytest.mark.parametrize(("temperature", "asked"), [(None, 1), (0.0, 1), (0.7, 2)])
def test_a_model_that_samples_is_asked_anew(server: LLMServer, temperature: float | None, asked: int) -> None:
    settings = LMSettings(model="openai/test", api_base=server.url, temperature=temperature)
    lm = metered_lm(settings, Meter(10, 10**9))
    program = ROUTING.build_program(labels_of(ROUTING, CONFIG))
    for _ in range(2):
        answer_all(ROUTING, program, [example("where is it", "search_agent")], lm)
    assert server.calls == lm.meter.calls == asked


def test_a_request_that_times_out_is_asked_again(server: LLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LMSettings(model="openai/test", api_base=server.url, timeout_seconds=0.3)
    server.trouble = [1.0]
    lm = metered_lm(settings, Meter(10, 10**9))
    program = ROUTING.build_program(labels_of(ROUTING, CONFIG))
    (answer,) = answer_all(ROUTING, program, [example("where is it", "search_agent")], lm)
    assert answer.values is not None
    assert (server.calls, lm.meter.calls) == (2, 1)


def test_a_single_request_that_the_model_refuses_is_a_wrong_answer_and_many_are_an_error(
    server: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = ROUTING.build_program(labels_of(ROUTING, CONFIG))
    asked = [example(f"question {i}", "search_agent") for i in range(60)]
    server.trouble = [400]
    answers = answer_all(ROUTING, program, asked, over_http(server, monkeypatch))
    assert [answer.values for answer in answers].count(None) == 1
    server.trouble = [400, 400]
    with pytest.raises(LMUnavailable, match="2 of 60 requests were refused"):
        answer_all(ROUTING, program, asked, over_http(server, monkeypatch))


def test_a_refusal_that_quotes_the_key_is_raised_without_it(server: LLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = over_http(server, monkeypatch)
    server.always = 400
    with using(lm), pytest.raises(LMInvalidRequestError) as error:
        ROUTING.build_program(labels_of(ROUTING, CONFIG))(query="where is it")
    said = [str(error.value), error.value.message, *traceback.format_exception(error.value)]
    assert all("sk-very-secret" not in text for text in said)
    assert all("trouble with Bearer ***" in text for text in said[:2])
    assert error.value.status == 400


def test_an_outage_in_the_middle_of_a_search_is_an_error_and_not_a_bad_candidate(
    server: LLMServer, monkeypatch: pytest.MonkeyPatch, traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    def fail_from_now_on(line: str) -> None:
        if line.startswith("labeled-few-shot"):
            server.always = 401

    with pytest.raises(LMNotConfigured):
        optimize(job(traffic), over_http(server, monkeypatch), artifacts, log=fail_from_now_on)


def test_reasoning_models_get_no_temperature() -> None:
    lm = metered_lm(LMSettings(model="openai/o4-mini", api_base="http://127.0.0.1:9"), Meter(1, 1))
    assert lm.name == "openai/o4-mini"
    with pytest.raises(LMNotConfigured, match="openai/o4-mini"):
        metered_lm(LMSettings(model="openai/o4-mini", temperature=0.5), Meter(1, 1))


def test_without_bootstrapped_demos_the_labelled_ones_still_compete(
    traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    report = optimize(job(traffic, with_field(CONFIG, "dspy_max_bootstrapped_demos", "0")), stand_in(), artifacts)
    assert report.verdict is Verdict.PROMOTED


def test_a_spent_token_budget_keeps_the_best_so_far_too(traffic: list[LoggedDecision], artifacts: VersionStore) -> None:
    lm = metered_lm(LMSettings(model="stand-in"), Meter(6000, 2_000_000))
    report = optimize(job(traffic), lm, artifacts)
    assert report.verdict is Verdict.PROMOTED
    assert report.lm_tokens <= 2_000_000
    assert any("the budget ended the search" in note for note in report.notes)


def test_a_spent_budget_of_dollars_keeps_the_best_so_far_too(
    traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    priced = LMSettings(model="stand-in", price=LMPrice(input=1.0, output=4.0))
    lm = metered_lm(priced, Meter(6000, 10**9, max_dollars=2.0))
    report = optimize(job(traffic, with_field(CONFIG, "local_router", "false")), lm, artifacts)
    assert report.lm_dollars is not None
    assert 0.5 < report.lm_dollars <= 2.0
    assert any("of $2 are spent, and the rest is held back" in note for note in report.notes)
    cost = report.costs["incumbent"]
    assert cost.dollars == pytest.approx((cost.input_tokens + 4 * cost.output_tokens) / 1e6)


def test_too_few_tokens_for_a_comparison_are_an_error_and_not_a_verdict(
    traffic: list[LoggedDecision], artifacts: VersionStore
) -> None:
    lm = metered_lm(LMSettings(model="stand-in"), Meter(6000, 5000))
    with pytest.raises(InvalidConfig, match=r"raise budget\.max_lm_calls and budget\.max_tokens"):
        optimize(job(traffic), lm, artifacts)
    assert artifacts.ledger() == []


def test_an_artifact_store_that_fails_never_makes_the_baseline_the_incumbent(
    traffic: list[LoggedDecision], promoted: tuple[Report, VersionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, artifacts = promoted
    before = artifacts.active()
    (root,) = Path(artifacts._files._root).glob("acme/routing/versions/*/program.json")
    monkeypatch.setattr(ObjectStore, "read", _failing_at(root.name, ObjectStore.read))
    with pytest.raises(ArtifactStoreUnavailable):
        optimize(job(traffic), stand_in(), artifacts)
    monkeypatch.undo()
    assert artifacts.active() == before


def _failing_at(
    name: str, read: Callable[[ObjectStore, str], bytes | None]
) -> Callable[[ObjectStore, str], bytes | None]:
    def failing(self: ObjectStore, path: str) -> bytes | None:
        with self._errors(path):
            if path.endswith(name):
                raise OSError("503 Slow Down")
        return read(self, path)

    return failing


def test_a_better_program_replaces_the_one_that_made_the_traffic(artifacts: VersionStore) -> None:
    """The unreviewed traces then carry the incumbent's own answers, and must not keep it in place."""
    few_demos = with_field(CONFIG, "dspy_max_labeled_demos", "12")
    first = optimize(job(decisions(380), few_demos), stand_in(), artifacts)
    assert first.verdict is Verdict.PROMOTED
    incumbent = deserialize(ROUTING, labels_of(ROUTING, CONFIG), artifacts.load(first.version or ""))
    served = _decided_by(incumbent, decisions(1500, seed=7))
    report = optimize(job(served), stand_in(20_000), artifacts)
    assert report.examples["guard"] > 50
    assert report.verdict is Verdict.PROMOTED, report.reason
    assert report.incumbent_version == first.version


def _decided_by(program: dspy.Module, traffic: list[LoggedDecision]) -> list[LoggedDecision]:
    """The same requests, had this program decided them; reviews say what is right."""
    labels = labels_of(ROUTING, CONFIG)
    kept = []
    for decision in traffic:
        found = ROUTING.build_examples(labels, [decision]).examples
        if not found:
            continue
        (answer,) = answer_all(ROUTING, program, found, stand_in())
        attributes = {
            **decision.attributes,
            "routing.chosen_agent": (answer.values or {}).get("agent"),
            "routing.confidence": 0.9,
        }
        reviewed = found[0].provenance is not Provenance.OUTCOME
        review = Annotation("HUMAN", found[0].label, {"sampling": "random"}, decision.time)
        kept.append(replace(decision, attributes=attributes, failed=False, annotations=(review,) if reviewed else ()))
    return kept
