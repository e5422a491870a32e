"""The promises of the gate over whole histories, by the simulation in bench/gate.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "gate.py"
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


def test_the_same_seed_gives_the_same_outcome(bench: ModuleType) -> None:
    first, second = (played(bench, bench.our_gate, "5 points better", histories=10) for _ in range(2))
    assert first == second


def played(bench: ModuleType, rule: Any, name: str, *, histories: int) -> Any:
    scenario = next(scenario for scenario in bench.SCENARIOS if scenario.name == name)
    return bench.play(rule, scenario, histories=histories, seed=1, reviewed=100)
