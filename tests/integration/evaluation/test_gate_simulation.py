"""The promises of the gate over whole histories, by the simulation in bench/gate.py."""

import importlib.util
import random
import sys
from types import ModuleType
from typing import Any

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
    again = bench.MORE_RULES["our gate, each look repeated 5 times"]
    assert played(bench, again, name, histories=100).falsely > 0.08


@pytest.mark.parametrize("sticky", [False, True])
def test_flips_make_the_differences_that_the_search_reckons_with(bench: ModuleType, sticky: bool) -> None:
    scenario = bench.Scenario("x", 0.05, flips=bench.Flips(0.2, sticky=sticky))
    tenant = bench.Tenant(scenario, 100, random.Random(1))
    truth = tenant.truth(1)
    cases = [case for _ in range(400) for case in tenant.ask(tenant.night(), truth)]
    seen = truth.seen_through(scenario.flips)
    assert sum(case.fixed for case in cases) / len(cases) == pytest.approx(seen.fixes, abs=0.01)
    assert sum(case.broken for case in cases) / len(cases) == pytest.approx(seen.breaks, abs=0.01)


def test_the_same_seed_gives_the_same_outcome(bench: ModuleType) -> None:
    first, second = (played(bench, bench.our_gate, "5 points better", histories=10) for _ in range(2))
    assert first == second


def played(bench: ModuleType, rule: Any, name: str, *, histories: int) -> Any:
    scenario = next(scenario for scenario in (*bench.SCENARIOS, *bench.UNSTEADY) if scenario.name == name)
    return bench.play(rule, scenario, histories=histories, seed=1, reviewed=100)
