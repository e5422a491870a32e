"""What does the race find, and for how many calls and tokens, beside DSPy's optimizers on their own?

    python bench/race.py --seeds 5 --clinc routing.jsonl --tokenizer http://127.0.0.1:8081

prints accuracy on held-out queries, calls, tokens and CPU seconds: each optimizer at its own default cost, the race
with a third of the tokens that MIPROv2 took, and the others at about the calls, then the tokens, that the race without
a local router took. The model is the stand-in, so nothing here says what an optimizer does for a language model, and
GEPA is left out because it searches for nothing but instructions; see bench/README.md. `--clinc` is a file of JSON
lines with `query` and `agent`, here made of CLINC150. `--tokenizer` is a server of llama.cpp (`make lm`), whose
model's tokens are counted; without it four characters are taken for a token.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dspy
import httpx
from dspy.lm15 import Request, Response, Usage

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, sample_truths
from autoopt_pipeline.evaluation.runner import answer_all, dspy_example, grade, using
from autoopt_pipeline.evaluation.split import Split
from autoopt_pipeline.lm.metering import Meter, MeteredEngine, Role
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.lm.prices import call_cost
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.modules.spec import Example, Label, Provenance
from autoopt_pipeline.optimization import search as searching
from autoopt_pipeline.optimization.optimizers import Optimizer, OptimizerContext, demo_pickers, scorer
from autoopt_pipeline.settings import STAND_IN
from autoopt_pipeline.tenants.config import Agent, RoutingConfigUnified

TRAIN, DEV, HELD_OUT = 200, 100, 300
LABELED, BOOTSTRAPPED = 50, 10
CLOSE, TRIES = 0.06, 3
"""An optimizer is to end within this share of the race's tokens, and is run so often at most for that."""
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
    prompt_tokens: int
    answer_tokens: int
    cpu_seconds: float

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


Method = Callable[[Task, int], dspy.Module]
"""Makes a program; the number is the calls that it should take, where it can be told."""


def start(task: Task, calls: int) -> dspy.Module:
    return task.start


def coverage(task: Task, calls: int) -> dspy.Module:
    *_, largest = (optimizer for optimizer in demo_pickers(_workshop(task)) if optimizer.name.startswith("coverage"))
    return largest.compile()


def race(task: Task, calls: int, *, local_router: bool = True) -> dspy.Module:
    config = RoutingConfigUnified(
        tenant_id="bench",
        agents=[Agent(name=label.name) for label in task.labels],
        dspy_max_labeled_demos=LABELED,
        dspy_max_bootstrapped_demos=BOOTSTRAPPED,
        local_router=local_router,
    )
    split = Split(tuple(task.train), tuple(task.dev), (), (), 0, 0, 0, 0)
    found = searching.search(
        ROUTING,
        config,
        task.labels,
        split,
        task.start,
        task.start,
        task.lm,
        task.lm,
        lambda line: None,
        PhaseTracker(task.lm.meter),
    )
    return found.finalist.program if found.finalist else task.start


def race_of_prompts(task: Task, calls: int) -> dspy.Module:
    return race(task, calls, local_router=False)


def race_without_coverage(task: Task, calls: int) -> dspy.Module:
    def others(context: OptimizerContext) -> Iterator[Optimizer]:
        return (optimizer for optimizer in demo_pickers(context) if not optimizer.name.startswith("coverage"))

    with patch.object(searching, "demo_pickers", others):
        return race_of_prompts(task, calls)


def random_search(task: Task, calls: int) -> dspy.Module:
    return _random_search(task, 16)


def random_search_within(task: Task, calls: int) -> dspy.Module:
    """Besides its candidates it judges three programs, and bootstrapping takes about ten calls each."""
    return _random_search(task, max(1, round((calls - 3 * DEV) / (DEV + 10))))


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


RACES: dict[str, Method] = {
    "race": race,
    "race without a local router": race_of_prompts,
    "race without a local router and coverage": race_without_coverage,
}
"""The race, and what it finds without what knows more than DSPy's optimizers do."""
RACE, MIPRO = "race without a local router", 'MIPROv2 auto="light"'
OWN_COST: dict[str, Method] = {
    "start, zero-shot": start,
    "coverage picker alone": coverage,
    **RACES,
    "BootstrapFewShotWithRandomSearch": random_search,
    MIPRO: mipro,
}
WITHIN: dict[str, Method] = {
    "BootstrapFewShotWithRandomSearch": random_search_within,
    MIPRO: mipro_within,
}
"""The same optimizers, told how many calls they may take."""


CountTokens = Callable[[str], int]


def four_characters(text: str) -> int:
    return len(text) // 4


def tokenizer_of(address: str) -> CountTokens:
    """Tokens of the model that a server of llama.cpp serves. Texts come again and again, so each is sent once."""
    client = httpx.Client(base_url=address, timeout=60)

    @cache
    def count(text: str) -> int:
        return len(client.post("/tokenize", json={"content": text}).raise_for_status().json()["tokens"])

    return count


class CountedStandIn:
    """The stand-in, with tokens as a model would count them: of all texts of a prompt, without what a chat adds."""

    def __init__(self, count: CountTokens) -> None:
        self._engine, self._count = StandInEngine(), count

    def complete(self, request: Request) -> Response:
        response = self._engine.complete(request)
        texts = [request.system if isinstance(request.system, str) else "", *(m.text or "" for m in request.messages)]
        read, written = sum(map(self._count, texts)), self._count(response.message.text or "")
        return replace(response, usage=Usage(input_tokens=read, output_tokens=written, total_tokens=read + written))


class Forgetful:
    """Counts every call, also of what was asked before: DSPy's optimizers by themselves remember no answers."""

    def __init__(self, engine: CountedStandIn, meter: Meter) -> None:
        self._engine, self._meter = engine, meter

    def complete(self, request: Request) -> Response:
        self._meter.admit(Role.ANSWERS)
        response = self._engine.complete(request)
        self._meter.add_cost(Role.ANSWERS, call_cost(response, None))
        return response


def measure(
    method: Method,
    queries: Queries,
    labels: Sequence[Label],
    count: CountTokens,
    calls: int = 0,
    *,
    max_tokens: int = 10**12,
) -> Result:
    examples = [_example(number, query, agent) for number, (query, agent) in enumerate(queries)]
    parts = examples[:TRAIN], examples[TRAIN : TRAIN + DEV], examples[TRAIN + DEV : TRAIN + DEV + HELD_OUT]
    lm = _lm(count, max_tokens, forgetful=method not in RACES.values())
    task = Task(labels, *parts, lm)
    began = time.process_time()
    program = method(task, calls)
    seconds = time.process_time() - began
    graded = grade(ROUTING, task.held_out, answer_all(ROUTING, program, task.held_out, _lm(four_characters)))
    accuracy = sum(answer.score for answer in graded) / HELD_OUT
    return Result(accuracy, lm.meter.calls, lm.meter.input_tokens, lm.meter.output_tokens, seconds)


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


def _lm(count: CountTokens, max_tokens: int = 10**12, *, forgetful: bool = False) -> MeteredLM:
    meter = Meter(max_calls=10**6, max_tokens=max_tokens)
    engine = CountedStandIn(count)
    asked = Forgetful(engine, meter) if forgetful else MeteredEngine(engine, STAND_IN, meter, Role.ANSWERS)
    lm = dspy.LM(f"{STAND_IN}/nearest-demo", engine=asked, cache=False, num_retries=0)
    return MeteredLM(lm, meter, STAND_IN, threads=1, is_stand_in=True)


def _workshop(task: Task) -> OptimizerContext:
    return OptimizerContext(
        ROUTING, task.labels, task.start, task.train, task.dev, task.lm, task.lm, LABELED, BOOTSTRAPPED
    )


def _row(name: str, results: Sequence[Result]) -> str:
    accuracies = [100 * result.accuracy for result in results]
    calls = [result.calls for result in results]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return (
        f"| {name} | {mean(accuracies):.1f} ({min(accuracies):.1f}-{max(accuracies):.1f}) "
        f"| {mean(calls):.0f} ({min(calls)}-{max(calls)}) "
        f"| {mean([result.prompt_tokens for result in results]) / 1000:,.0f} "
        f"| {mean([result.answer_tokens for result in results]) / 1000:,.0f} "
        f"| {mean([result.cpu_seconds for result in results]):.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--clinc", type=Path, help="queries of people, as JSON lines")
    parser.add_argument("--tokenizer", help="address of a server of llama.cpp, as 'make lm' prints it")
    args = parser.parse_args()
    count = tokenizer_of(args.tokenizer) if args.tokenizer else four_characters
    tokens = "tokens" if args.tokenizer else "tokens (4 characters each)"
    sources = {"generated traffic": (generated, [Label(name, text) for name, text in SAMPLE_AGENTS.items()])}
    if args.clinc:
        sources["CLINC150, 8 domains"] = (clinc(args.clinc), [Label(name) for name in CLINC_AGENTS])
    for source, (draw, labels) in sources.items():
        print(f"\n{source}\n\n| optimizer | held-out accuracy, % | LM calls | thousand prompt {tokens} ", end="")
        print(f"| thousand answer {tokens} | CPU seconds |\n|---|--:|--:|--:|--:|--:|")
        drawn = [draw(seed) for seed in range(1, args.seeds + 1)]
        found: dict[str, list[Result]] = {}
        for name, method in OWN_COST.items():
            found[name] = [measure(method, queries, labels, count) for queries in drawn]
            print(_row(name, found[name]), flush=True)
        for name, method in RACES.items():
            results = [
                measure(method, queries, labels, count, max_tokens=round(own.tokens / 3))
                for queries, own in zip(drawn, found[MIPRO], strict=True)
            ]
            print(_row(f"{name}, a third of MIPROv2's tokens", results), flush=True)
        for what, within in (("calls", _within_calls), ("tokens", _within_tokens)):
            for name, method in WITHIN.items():
                results = [
                    within(partial(measure, method, queries, labels, count), raced, own)
                    for queries, raced, own in zip(drawn, found[RACE], found[name], strict=True)
                ]
                print(_row(f"{name.split()[0]}, {what} of the race", results), flush=True)


def _within_calls(run: Callable[[int], Result], raced: Result, own: Result) -> Result:
    return run(raced.calls)


def _within_tokens(run: Callable[[int], Result], raced: Result, own: Result) -> Result:
    """The nearest of a few tries, the first by what a call takes at the optimizer's own cost."""
    tries = [own]
    while len(tries) <= TRIES and _off(tries[-1], raced) > CLOSE:
        last = tries[-1]
        tries.append(run(round(last.calls * raced.tokens / last.tokens)))
    return min(tries, key=lambda each: _off(each, raced))


def _off(result: Result, raced: Result) -> float:
    return abs(result.tokens / raced.tokens - 1)


if __name__ == "__main__":
    main()
