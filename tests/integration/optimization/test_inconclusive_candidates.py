"""A candidate that waits: tried on new traces only, each once, until it is proven or given up."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, TrafficProfile, sample_truths, simulate_requests
from autoopt_pipeline.errors import PromotionConflict
from autoopt_pipeline.evaluation.runner import dspy_example
from autoopt_pipeline.evaluation.sequential_test_log import (
    SequentialTestConditions,
    find_open_test,
)
from autoopt_pipeline.evaluation.split import HoldoutExample, Split, side_of, split_examples
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.optimization.holdout import drawn_traces
from autoopt_pipeline.optimization.job import ModuleRun, OptimizationJob
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.optimization.preparation import MAX_DEV, MAX_HOLDOUT, MAX_TRAIN, prepare
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.records import Program, Verdict
from autoopt_pipeline.registry.serialization import serialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import Agent, LMSettings, RoutingConfigUnified, with_field
from autoopt_pipeline.tenants.labels import labels_of
from tests.support.sample_decisions import as_read, example
from tests.support.sequential_tests import begin_test
from tests.support.stored_programs import manifest_of

ROUTING = get_module("routing")
CONFIG = RoutingConfigUnified(tenant_id="acme", agents=[Agent(name=name) for name in SAMPLE_AGENTS])
LABELS = labels_of(ROUTING, CONFIG)
CONDITIONS = SequentialTestConditions(None, "stand-in", tuple(SAMPLE_AGENTS))
START = datetime(2026, 1, 1, tzinfo=UTC)


def traffic(count: int, *, day: int, habits: TrafficProfile | None = None) -> list[LoggedDecision]:
    rng = random.Random(day)
    choices = {"agent": list(SAMPLE_AGENTS), "modality": ["video", "text"]}
    start = START + timedelta(days=day)
    truths = list(sample_truths(count, rng))
    requests = simulate_requests(
        truths, choices, habits or TrafficProfile(), start=start, end=start + timedelta(days=1), rng=rng
    )
    found = as_read(ROUTING, list(requests))
    return [
        LoggedDecision(f"{day:04x}{d.span_id[4:]}", f"{day:04x}{d.trace_id[4:]}", *list(d.__dict__.values())[2:])
        for d in found
    ]


def split(decisions: list[LoggedDecision], shown: set[str] | None = None) -> list[HoldoutExample]:
    examples = ROUTING.build_examples(LABELS, decisions).examples
    parts = split_examples(
        examples, max_holdout=MAX_HOLDOUT, max_dev=MAX_DEV, max_train=MAX_TRAIN, shown=shown or set()
    )
    return [*parts.holdout, *parts.guard]


def program(decisions: list[LoggedDecision], *, upside_down: bool = False) -> Program:
    """All training examples as demos; upside down, every one of them shows a wrong agent."""
    examples = ROUTING.build_examples(LABELS, decisions).examples
    parts = split_examples(examples, max_holdout=MAX_HOLDOUT, max_dev=MAX_DEV, max_train=80)
    built = ROUTING.build_program(LABELS)
    names = list(SAMPLE_AGENTS)
    demos = [dspy_example(ROUTING, each) for each in parts.train]
    if upside_down:
        for demo in demos:
            demo["agent"] = names[(names.index(demo["agent"]) + 1) % len(names)]
    for predictor in built.predictors():
        predictor.demos = demos
    return serialize(ROUTING, "acme", LABELS, built)


OLD = traffic(300, day=0)
LEARNT = split_examples(
    ROUTING.build_examples(LABELS, OLD).examples, max_holdout=MAX_HOLDOUT, max_dev=MAX_DEV, max_train=MAX_TRAIN
).learnt


@pytest.fixture(scope="module")
def old() -> list[LoggedDecision]:
    return OLD


def wait(
    artifacts: VersionStore,
    stored: Program,
    seen: list[HoldoutExample],
    *,
    alpha: float = 0.01,
    conditions: SequentialTestConditions = CONDITIONS,
) -> str:
    version = f"20260101T000000Z-{stored.digest[:8]}"
    artifacts.save(stored, manifest_of(stored, version, verdict="inconclusive"))
    queries = {query for judged in seen for query in judged.group} | LEARNT
    begin_test(artifacts, version, conditions, queries, alpha=alpha)
    return version


def run(
    artifacts: VersionStore, decisions: list[LoggedDecision], config: RoutingConfigUnified = CONFIG, run_id: str = "r2"
) -> Report:
    lm = metered_lm(LMSettings(model="stand-in"), Meter(20_000, 10**9))
    return optimize(
        OptimizationJob(ROUTING, config, decisions, START, START + timedelta(days=9), run_id), lm, artifacts
    )


def test_a_waiting_candidate_is_promoted_by_new_traces_and_no_other_is_searched_for(
    artifacts: VersionStore, old: list[LoggedDecision]
) -> None:
    version = wait(artifacts, program(old), split(old))
    report = run(artifacts, [*old, *traffic(400, day=3)])
    assert report.verdict is Verdict.PROMOTED, report.reason
    assert report.active_version == report.version == version
    assert report.tried == ()
    assert report.gate is not None
    assert report.lm_calls == 2 * (report.gate.comparison.cases - 100)
    assert artifacts.ledger() == []  # its alpha was charged when the test began
    (transition,) = artifacts.transitions()
    assert transition.reason.startswith("proven better: ")


def test_what_it_was_judged_on_before_counts_no_more(artifacts: VersionStore, old: list[LoggedDecision]) -> None:
    version = wait(artifacts, program(old), split(old))
    report = run(artifacts, old)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.reason == f"the sequential test of {version} has 100 traces, and no new held-out ones"
    assert report.lm_calls == 0


def test_every_new_trace_counts_once_over_several_nights(artifacts: VersionStore, old: list[LoggedDecision]) -> None:
    wait(artifacts, program(old), split(old), alpha=1e-30)
    nights = [*old]
    for night in (2, 3):
        nights += traffic(100, day=night)
        assert run(artifacts, nights, run_id=f"n{night}").verdict is Verdict.INCONCLUSIVE
    test = find_open_test(artifacts, CONDITIONS)
    assert test is not None
    begun, *steps = artifacts.sequential_test()
    drawn = [len(step.batch.reviewed) + len(step.batch.agreed) for step in steps if step.batch]
    assert len(drawn) == 2
    assert sum(batch.drawn for batch in test.batches) == sum(drawn) + 100 > 130
    assert all(set(step.seen).isdisjoint(begun.seen) for step in steps)
    assert set(steps[0].seen).isdisjoint(steps[1].seen)
    assert run(artifacts, nights, run_id="again").lm_calls == 0


def test_a_group_that_grew_is_not_new(artifacts: VersionStore) -> None:
    begin_test(artifacts, "v", CONDITIONS, ["find the old red report"])
    test = find_open_test(artifacts, CONDITIONS)
    assert test is not None
    grown = HoldoutExample(
        example("find the old red report please"), ("find the old red report", "find the old red report please")
    )
    fresh = HoldoutExample(example("something else"), ("something else",))
    parts = Split((), (), (grown, fresh), (), 0, 0, 0, 0, drawable=(grown, fresh))
    assert drawn_traces(parts, "reviewed", seed="", without=test.seen) == [fresh]
    assert drawn_traces(parts, "all", seed="", without=test.seen) == [fresh]


def test_a_hopeless_candidate_is_given_up_and_the_next_run_searches_again(
    artifacts: VersionStore, old: list[LoggedDecision]
) -> None:
    wait(artifacts, program(old, upside_down=True), split(old))
    everything = [*old, *traffic(500, day=3)]
    report = run(artifacts, everything)
    assert report.verdict is Verdict.REJECTED, report.reason
    assert "wins too few" in report.reason or "not better" in report.reason
    assert artifacts.active() is None
    assert find_open_test(artifacts, CONDITIONS) is None
    assert run(artifacts, everything, run_id="r3").tried


def test_a_trial_ends_when_another_version_becomes_active(artifacts: VersionStore, old: list[LoggedDecision]) -> None:
    version = wait(artifacts, program(old), split(old))
    artifacts.transition(version, expected=None, actor="marta", reason="I am sure")
    assert find_open_test(artifacts, replace(CONDITIONS, incumbent=version)) is None


def test_what_was_promoted_and_rolled_back_does_not_come_back_by_itself(
    artifacts: VersionStore, old: list[LoggedDecision]
) -> None:
    before = wait(artifacts, program(old, upside_down=True), split(old))
    artifacts.transition(before, expected=None, actor="marta", reason="the first one")
    stored = program(old)
    version = wait(artifacts, stored, split(old), conditions=replace(CONDITIONS, incumbent=before))
    assert find_open_test(artifacts, replace(CONDITIONS, incumbent=before)) is not None
    artifacts.transition(version, expected=before, actor="run", reason="proven")
    artifacts.transition(before, expected=version, actor="marta", reason="it annoys people")
    assert find_open_test(artifacts, replace(CONDITIONS, incumbent=before)) is None


@pytest.mark.parametrize(
    "other",
    [
        replace(CONDITIONS, incumbent="another"),
        replace(CONDITIONS, lm="openai/gpt"),
        replace(CONDITIONS, labels=(*SAMPLE_AGENTS, "new_agent")),
    ],
    ids=["opponent", "model", "labels"],
)
def test_cases_under_other_terms_are_not_added_up(
    artifacts: VersionStore, old: list[LoggedDecision], other: SequentialTestConditions
) -> None:
    wait(artifacts, program(old), split(old), conditions=other)
    assert find_open_test(artifacts, CONDITIONS) is None
    assert find_open_test(artifacts, other) is not None


def test_the_opponent_of_a_composed_module_without_a_version_is_its_parts(artifacts: VersionStore) -> None:
    lm = metered_lm(LMSettings(model="stand-in"), Meter(1, 1))

    def opponent(parts: dict[str, Program]) -> str | None:
        job = OptimizationJob(get_module("unified"), CONFIG, [], START, START, "r", parts=parts)
        prepared, _ = prepare(ModuleRun(job, lm, lm, None, artifacts, print, PhaseTracker(lm.meter)))
        return prepared.conditions.incumbent

    routing = program(traffic(60, day=0))
    other = routing.model_copy(update={"labels": ["x"]})
    assert opponent({}) is None
    assert opponent({"routing": routing}) != opponent({"routing": other}) != opponent({})


def test_what_trained_or_chose_the_candidate_is_not_drawn_later(artifacts: VersionStore) -> None:
    sides = {side_of(query) for query in LEARNT}
    assert sides == {"train", "dev"}
    begin_test(artifacts, "v", CONDITIONS, LEARNT)
    test = find_open_test(artifacts, CONDITIONS)
    assert test is not None
    like_one = min(LEARNT)
    grown = HoldoutExample(example(f"{like_one} now"), (like_one, f"{like_one} now"))
    assert drawn_traces(Split((), (), (grown,), (), 0, 0, 0, 0), "reviewed", seed="", without=test.seen) == []


def test_another_run_that_began_a_trial_meanwhile_is_not_replaced(artifacts: VersionStore) -> None:
    begin_test(artifacts, "v1", CONDITIONS, ["a"], run_id="quicker")
    with pytest.raises(PromotionConflict):
        begin_test(artifacts, "v2", CONDITIONS, ["a"], run_id="slower", after=0)


def test_a_trial_ends_when_the_module_is_to_be_retrained(artifacts: VersionStore, old: list[LoggedDecision]) -> None:
    wait(artifacts, program(old), split(old))
    later = datetime.now(UTC) + timedelta(minutes=1)
    retrain = with_field(CONFIG, "modules.routing.retrain_after", f'"{later.isoformat()}"')
    report = run(artifacts, [*old, *traffic(300, day=3)], retrain)
    assert report.tried
    assert any("is to be retrained" in note for note in report.notes)


def test_a_trial_ends_when_nothing_new_comes_for_a_whole_lookback(
    artifacts: VersionStore, old: list[LoggedDecision]
) -> None:
    wait(artifacts, program(old), split(old))
    lm = metered_lm(LMSettings(model="stand-in"), Meter(20_000, 10**9))
    much_later = datetime.now(UTC) + timedelta(days=40)
    report = optimize(
        OptimizationJob(ROUTING, CONFIG, [*old, *traffic(300, day=3)], START, much_later, "r9"), lm, artifacts
    )
    assert report.tried
    assert any("the lookback has no new traces" in note for note in report.notes)


def test_in_manual_mode_a_proven_trial_waits_for_approval(artifacts: VersionStore, old: list[LoggedDecision]) -> None:
    version = wait(artifacts, program(old), split(old))
    report = run(artifacts, [*old, *traffic(400, day=3)], with_field(CONFIG, "mode", "propose"))
    assert report.verdict is Verdict.AWAITING_APPROVAL
    assert artifacts.active() is None
    assert report.version == version


def test_two_runs_cannot_enter_the_same_step(artifacts: VersionStore, old: list[LoggedDecision]) -> None:
    wait(artifacts, program(old), split(old), alpha=1e-30)
    everything = [*old, *traffic(100, day=3)]
    lm = metered_lm(LMSettings(model="stand-in"), Meter(20_000, 10**9))

    def another_run_is_quicker(line: str) -> None:
        if line.startswith("sequential test of"):
            run(artifacts, everything, run_id="quicker")

    with pytest.raises(PromotionConflict, match="another run has continued the sequential test"):
        job = OptimizationJob(ROUTING, CONFIG, everything, START, START + timedelta(days=9), "slower")
        optimize(job, lm, artifacts, log=another_run_is_quicker)
    assert len(artifacts.sequential_test()) == 2


def test_a_test_against_the_programs_of_a_composed_modules_parts_stays_open(artifacts: VersionStore) -> None:
    conditions = SequentialTestConditions("modality 1a2b3c4d, routing 5e6f7a8b", "stand-in", ())
    begin_test(artifacts, "20260101T000000Z-earlier1", conditions)
    assert find_open_test(artifacts, conditions)
