"""What does the race find, and for how many calls, beside DSPy's optimizers on their own?

    python bench/race.py --seeds 5 --clinc routing.jsonl

prints accuracy on held-out queries, calls and CPU seconds, each optimizer at its own default cost and then at about
the calls that the race took. The model is the stand-in, so nothing here says what an optimizer does for a language
model; see bench/README.md. `--clinc` is a file of JSON lines with `query` and `agent`, here made of CLINC150.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dspy
from dspy.lm15 import Request, Response

from autoopt_pipeline.lm.meter import Meter, Role
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.lm.stand_in import StandInEngine
from autoopt_pipeline.modules.registry import get_module
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.modules.spec import Example, Label, Provenance
from autoopt_pipeline.optimization import search as searching
from autoopt_pipeline.optimization.evaluation import answer_all, dspy_example, grade, using
from autoopt_pipeline.optimization.optimizers import Optimizer, Workshop, demo_pickers, feedback_metric, scorer
from autoopt_pipeline.optimization.split import Split
from autoopt_pipeline.tenants.config import Agent, LMSettings, RoutingConfigUnified
from autoopt_pipeline.traces.traffic import SAMPLE_AGENTS, sample_truths

TRAIN, DEV, HELD_OUT = 200, 100, 300
LABELED, BOOTSTRAPPED = 50, 10
CLINC_AGENTS = (
    "auto_and_commute_agent",
    "banking_agent",
    "credit_cards_agent",
    "home_agent",
    "kitchen_and_dining_agent",
    "travel_agent",
    "utility_agent",
    "work_agent",
)
ROUTING = get_module("routing")

Queries = Sequence[tuple[str, str]]
"""Queries with the agent that is right for each, in an order that says nothing."""


@dataclass(frozen=True)
class Task:
    """The data of one seed, and a model with a meter of its own to spend."""

    labels: Sequence[Label]
    train: Sequence[Example]
    dev: Sequence[Example]
    held_out: Sequence[Example]
    lm: MeteredLM

    @property
    def start(self) -> dspy.Module:
        return ROUTING.build_program(self.labels)

    def compiled(self, optimizer: Callable[[], Any], **more: int) -> dspy.Module:
        with using(self.lm):
            return optimizer().compile(
                self.start,
                trainset=[dspy_example(ROUTING, example) for example in self.train],
                valset=[dspy_example(ROUTING, example) for example in self.dev],
                **more,
            )


@dataclass(frozen=True)
class Result:
    """Accuracy on the held-out queries (0 to 1), and what finding the program took."""

    accuracy: float
    calls: int
    cpu_seconds: float


Method = Callable[[Task, int], dspy.Module]
"""Makes a program; the number is the calls that it should take, where it can be told."""


def start(task: Task, calls: int) -> dspy.Module:
    return task.start


def coverage(task: Task, calls: int) -> dspy.Module:
    *_, largest = (optimizer for optimizer in demo_pickers(_workshop(task)) if optimizer.name.startswith("coverage"))
    return largest.compile()


def race(task: Task, calls: int) -> dspy.Module:
    config = RoutingConfigUnified(
        tenant_id="bench",
        agents=[Agent(name=label.name) for label in task.labels],
        dspy_max_labeled_demos=LABELED,
        dspy_max_bootstrapped_demos=BOOTSTRAPPED,
    )
    split = Split(tuple(task.train), tuple(task.dev), (), (), 0, 0, 0, 0)
    found = searching.search(
        ROUTING, config, task.labels, split, task.start, task.start, task.lm, task.lm, lambda line: None
    )
    return found.finalist.program if found.finalist else task.start


def race_without_coverage(task: Task, calls: int) -> dspy.Module:
    def others(shop: Workshop) -> Iterator[Optimizer]:
        return (optimizer for optimizer in demo_pickers(shop) if not optimizer.name.startswith("coverage"))

    with patch.object(searching, "demo_pickers", others):
        return race(task, calls)


def random_search(task: Task, calls: int) -> dspy.Module:
    return _random_search(task, 16)


def random_search_within(task: Task, calls: int) -> dspy.Module:
    """Besides its candidates it judges three programs, and bootstrapping takes about ten calls each."""
    return _random_search(task, max(1, (calls - 3 * DEV) // (DEV + 10)))


def _random_search(task: Task, candidates: int) -> dspy.Module:
    return task.compiled(
        lambda: dspy.BootstrapFewShotWithRandomSearch(
            metric=scorer(ROUTING),
            max_bootstrapped_demos=BOOTSTRAPPED,
            max_labeled_demos=LABELED,
            num_candidate_programs=candidates,
            num_threads=1,
        )
    )


def mipro(task: Task, calls: int) -> dspy.Module:
    return task.compiled(lambda: _mipro(auto="light"))


def _mipro(**search: Any) -> dspy.MIPROv2:
    return dspy.MIPROv2(
        metric=scorer(ROUTING),
        max_bootstrapped_demos=BOOTSTRAPPED,
        max_labeled_demos=LABELED,
        num_threads=1,
        **search,
    )


def mipro_within(task: Task, calls: int) -> dspy.Module:
    """A trial takes 35 calls, every fifth one all of dev as well, and some 60 go into bootstrapping and proposals."""
    return task.compiled(
        lambda: _mipro(auto=None, num_candidates=6),
        num_trials=max(1, round((calls - 2 * DEV - 60) / (35 + DEV / 5))),
    )


def gepa(task: Task, calls: int) -> dspy.Module:
    return task.compiled(
        lambda: dspy.GEPA(
            metric=feedback_metric(ROUTING, task.start), reflection_lm=task.lm.lm, auto="light", num_threads=1
        )
    )


def gepa_within(task: Task, calls: int) -> dspy.Module:
    """It goes beyond its calls by an evaluation on dev at most."""
    return task.compiled(
        lambda: dspy.GEPA(
            metric=feedback_metric(ROUTING, task.start),
            reflection_lm=task.lm.lm,
            max_metric_calls=calls - DEV // 2,
            num_threads=1,
        )
    )


OWN_COST: dict[str, Method] = {
    "start, zero-shot": start,
    "coverage picker alone": coverage,
    "race": race,
    "race without coverage": race_without_coverage,
    "BootstrapFewShotWithRandomSearch": random_search,
    'MIPROv2 auto="light"': mipro,
    'GEPA auto="light"': gepa,
}
SAME_COST: dict[str, Method] = {
    "BootstrapFewShotWithRandomSearch, calls of the race": random_search_within,
    "MIPROv2, calls of the race": mipro_within,
    "GEPA, calls of the race": gepa_within,
}


class Forgetful:
    """Counts every call, also of what was asked before: DSPy's optimizers by themselves remember no answers."""

    def __init__(self, meter: Meter) -> None:
        self._engine, self._meter = StandInEngine(), meter

    def complete(self, request: Request) -> Response:
        self._meter.admit(Role.ANSWERS)
        return self._engine.complete(request)


def measure(method: Method, queries: Queries, labels: Sequence[Label], calls: int) -> Result:
    examples = [_example(number, query, agent) for number, (query, agent) in enumerate(queries)]
    parts = examples[:TRAIN], examples[TRAIN : TRAIN + DEV], examples[TRAIN + DEV : TRAIN + DEV + HELD_OUT]
    lm = _lm()
    if method not in (race, race_without_coverage):
        lm = replace(lm, lm=dspy.LM("stand-in/forgetful", engine=Forgetful(lm.meter), cache=False))
    task = Task(labels, *parts, lm)
    began = time.process_time()
    program = method(task, calls)
    seconds = time.process_time() - began
    graded = grade(ROUTING, task.held_out, answer_all(ROUTING, program, task.held_out, _lm()))
    return Result(sum(answer.score for answer in graded) / HELD_OUT, task.lm.meter.calls, seconds)


def generated(seed: int) -> Queries:
    truths = sample_truths(2 * (TRAIN + DEV + HELD_OUT), random.Random(seed))  # noqa: S311
    return _distinct((truth.query, truth.answers["agent"]) for truth in truths)


def clinc(path: Path) -> Callable[[int], Queries]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    all_queries = [(row["query"], row["agent"]) for row in rows if row["agent"] in CLINC_AGENTS]

    def drawn(seed: int) -> Queries:
        return _distinct(random.Random(seed).sample(all_queries, 2 * (TRAIN + DEV + HELD_OUT)))  # noqa: S311

    return drawn


def _distinct(queries: Iterator[tuple[str, str]] | Queries) -> Queries:
    return list({normalize_query(query): (query, agent) for query, agent in queries}.values())


def _example(number: int, query: str, agent: str) -> Example:
    inputs = {"query": query, "modality": "", "entities": "", "relationships": ""}
    span = f"{number:016x}"
    return Example(
        inputs, {"agent": agent}, agent, Provenance.HUMAN, True, datetime(2026, 1, 1, tzinfo=UTC), span, span
    )


def _lm() -> MeteredLM:
    return metered_lm(LMSettings(model="stand-in"), Meter(max_calls=10**6, max_tokens=10**12))


def _workshop(task: Task) -> Workshop:
    return Workshop(ROUTING, task.start, task.train, task.dev, task.lm, task.lm, LABELED, BOOTSTRAPPED)


def _row(name: str, results: Sequence[Result]) -> str:
    accuracies = [100 * result.accuracy for result in results]
    calls = [result.calls for result in results]
    mean, seconds = sum(accuracies) / len(results), sum(result.cpu_seconds for result in results) / len(results)
    return (
        f"| {name} | {mean:.1f} ({min(accuracies):.1f}-{max(accuracies):.1f}) "
        f"| {sum(calls) / len(calls):.0f} ({min(calls)}-{max(calls)}) | {seconds:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--clinc", type=Path, help="queries of people, as JSON lines")
    args = parser.parse_args()
    sources = {"generated traffic": (generated, [Label(name, text) for name, text in SAMPLE_AGENTS.items()])}
    if args.clinc:
        sources["CLINC150, 8 domains"] = (clinc(args.clinc), [Label(name) for name in CLINC_AGENTS])
    for source, (draw, labels) in sources.items():
        print(f"\n{source}\n\n| optimizer | held-out accuracy, % | LM calls | CPU seconds |\n|---|--:|--:|--:|")
        seeds = range(1, args.seeds + 1)
        raced: list[int] = []
        for name, method in (OWN_COST | SAME_COST).items():
            results = [
                measure(method, draw(seed), labels, raced[number] if raced else 0) for number, seed in enumerate(seeds)
            ]
            if method is race:
                raced = [result.calls for result in results]
            print(_row(name, results), flush=True)


if __name__ == "__main__":
    main()
