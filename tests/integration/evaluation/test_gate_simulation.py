"""The promises of the gate over whole histories, by the simulation in bench/gate.py."""

import importlib.util
import sys
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.project import PROJECT


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = PROJECT / "bench" / "gate.py"
    spec = importlib.util.spec_from_file_location("bench_gate", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["equal", "3 points worse"])
def test_thirty_nights_of_useless_candidates_rarely_promote_one(bench: ModuleType, name: str) -> None:
    two_standard_errors = 0.03
    assert played(bench, bench.our_gate, name, histories=200).falsely <= 0.05 + two_standard_errors


@pytest.mark.parametrize(("name", "promised"), [("8 points better", 0.80), ("15 points better", 0.95)])
def test_better_candidates_are_promoted_within_thirty_nights(bench: ModuleType, name: str, promised: float) -> None:
    assert played(bench, bench.our_gate, name, histories=100).rightly >= promised


def test_rejections_do_not_starve_a_module_whose_candidates_become_better(bench: ModuleType) -> None:
    name = "equal for 30 nights, then 8 points better for 30"
    assert played(bench, bench.our_gate, name, histories=60).rightly >= 0.75


def test_the_simulation_would_show_a_rule_that_is_fooled_by_luck(bench: ModuleType) -> None:
    assert played(bench, bench.RULES["p <= 0.05 every night"], "equal", histories=50).falsely > 0.4
    assert played(bench, bench.RULES["higher score every night"], "equal", histories=50).falsely > 0.9


@pytest.mark.parametrize(
    "name", ["equal; 5 % of answers flip, at each asking", "equal; 20 % of answers flip, at each asking"]
)
def test_a_model_that_does_not_repeat_itself_promotes_no_more_by_luck(bench: ModuleType, name: str) -> None:
    two_standard_errors = 0.044
    assert played(bench, bench.our_gate, name, histories=100).falsely <= 0.05 + two_standard_errors


def test_asking_a_look_again_until_it_promotes_would_promote_by_luck(bench: ModuleType) -> None:
    name = "equal; 20 % of answers flip, at each asking"
    again = bench.LOOK_REPEATED["our gate, each look repeated 5 times"]
    once, repeated = (played(bench, rule, name, histories=100).falsely for rule in (bench.our_gate, again))
    assert repeated > max(0.05, 2 * once)


@pytest.mark.parametrize("sticky", [False, True])
def test_flips_make_the_differences_that_the_search_reckons_with(bench: ModuleType, sticky: bool) -> None:
    tenant = bench.Tenant(bench.Scenario("x", 0.05, flips=0.2, sticky=sticky), [1], 100_000)
    tenant.night()
    truth = tenant.truth(1)
    at = np.arange(len(tenant.label))
    cases = tenant.ask(at, tenant.answers(at, truth))
    better, worse = tenant.seen(truth)
    assert sum(case.fixed for case in cases) / len(cases) == pytest.approx(better, abs=0.01)
    assert sum(case.broken for case in cases) / len(cases) == pytest.approx(worse, abs=0.01)


def test_the_same_seed_gives_the_same_outcome(bench: ModuleType) -> None:
    first, second = (played(bench, bench.our_gate, "5 points better", histories=10) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["equal", "3 points worse"])
def test_reviews_of_disagreements_rarely_promote_a_useless_candidate(bench: ModuleType, name: str) -> None:
    two_standard_errors = 0.03
    assert reviewed(bench, name, most=10, histories=200).falsely <= 0.05 + two_standard_errors


@pytest.mark.parametrize(("name", "reviews"), [("8 points better", 70), ("30 points better", 25)])
def test_few_reviews_promote_a_better_candidate(bench: ModuleType, name: str, reviews: int) -> None:
    found = reviewed(bench, name, most=10, histories=100)
    assert found.rightly >= 0.80
    assert found.to_promotion <= reviews


def test_the_simulation_would_show_a_judge_that_leans_to_the_candidate(bench: ModuleType) -> None:
    assert play(bench, partial(bench.our_gate, lean=0.2), bench.UNREVIEWED, "equal", histories=60).falsely > 0.15


def test_other_designs_are_measured_by_the_test_that_decides(bench: ModuleType) -> None:
    assert bench.sequential_test.math is bench.math
    bench.print_designs(histories=3, seed=1)
    assert bench.sequential_test.math is bench.math


def played(bench: ModuleType, rule: Any, name: str, *, histories: int) -> Any:
    return play(bench, rule, [*bench.SCENARIOS, *bench.UNSTEADY], name, histories=histories, may_judge=100)


def reviewed(bench: ModuleType, name: str, *, most: int, histories: int) -> Any:
    return play(bench, partial(bench.our_gate, reviews=most), bench.UNREVIEWED, name, histories=histories)


def play(bench: ModuleType, rule: Any, scenarios: Any, name: str, *, histories: int, may_judge: int = 200) -> Any:
    scenario = next(scenario for scenario in scenarios if scenario.name == name)
    return bench.play(rule, scenario, histories=histories, seed=1, may_judge=may_judge)
