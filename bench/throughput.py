"""How many calls a second reach a language model that takes 50 ms to answer?

    python bench/throughput.py

Nearly all calls of an optimization ask a program many examples, so that is what is measured: ours (`answer_all`, with
its meter, its budget and its retries) beside plain `dspy.Evaluate` with the same program, examples and threads. A demo
fills the prompt with 20 examples, as promoted programs do. Writes bench/results/throughput.json, throughput.md and
throughput.svg; see bench/README.md.
"""

import argparse
import logging
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dspy
from writing import Line, table, write_plot, write_results

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.evaluation.runner import answer_all, dspy_example
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Example, Label, Provenance
from autoopt_pipeline.tenants.config import LMSettings

HERE = Path(__file__).parent
ROUTING = get_module("routing")
LABELS = (Label("search_agent"), Label("report_agent"))
DEMOS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--latency", type=float, default=0.05, help="seconds")
    parser.add_argument("--seconds", type=float, default=6.0, help="that the endpoint alone would take for a line")
    arguments = parser.parse_args()
    logging.getLogger("dspy.evaluate").setLevel(logging.CRITICAL)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        port = free_port()
        command = [sys.executable, str(HERE / "endpoint.py"), str(port), str(arguments.latency)]
        processes.start("endpoint", command, env={}, cwd=HERE)
        url = f"http://127.0.0.1:{port}"
        processes.wait_for_http("endpoint", url, seconds=20)
        for threads in arguments.concurrency:
            count = round(arguments.seconds * threads / arguments.latency)
            examples = [_example(f"find thing {number}") for number in range(count)]
            for way, ask in (("ours", ours), ("plain DSPy", plain)):
                ask(examples[: 2 * threads], url, threads)  # connections, imports, caches
                began, spent = time.monotonic(), time.process_time()
                ask(examples, url, threads)
                took, cpu = time.monotonic() - began, time.process_time() - spent
                line = {
                    "calls at once": threads,
                    "way": way,
                    "calls": count,
                    "calls a second": round(count / took, 1),
                    "share of what the endpoint bears": round(count / took * arguments.latency / threads, 3),
                    "CPU ms a call": round(1000 * cpu / count, 2),
                }
                print(line)
                found.append(line)
    write_results("throughput", found, table(found))
    plot(found)


def plot(found: list[dict[str, Any]]) -> None:
    lines = [
        Line(way, [(line["calls at once"], line["calls a second"]) for line in found if line["way"] == way])
        for way in ("ours", "plain DSPy")
    ]
    write_plot("throughput", lines, x="calls at once", y="calls a second")


def _example(query: str) -> Example:
    right = {"agent": "search_agent"}
    return Example({"query": query}, right, "search_agent", Provenance.HUMAN, True, datetime.now(UTC), "s", "t")


def _program() -> dspy.Module:
    program = ROUTING.build_program(LABELS)
    for _, predictor in program.named_predictors():
        predictor.demos = [dspy_example(ROUTING, _example(f"look for page {number}")) for number in range(DEMOS)]
    return program


def ours(examples: list[Example], url: str, threads: int) -> None:
    settings = LMSettings(model="openai/bench", api_base=url, concurrency=threads)
    lm = metered_lm(settings, Meter(max_calls=10**9, max_tokens=10**12))
    answers = answer_all(ROUTING, _program(), examples, lm)
    if any(answer.values != {"agent": "search_agent"} for answer in answers):
        raise SystemExit("the endpoint was not understood")


def plain(examples: list[Example], url: str, threads: int) -> None:
    lm = dspy.LM("openai/bench", api_base=url, api_key="none", cache=False)
    evaluate = dspy.Evaluate(
        devset=[dspy_example(ROUTING, example) for example in examples],
        metric=lambda example, prediction, trace=None: float(prediction.agent == "search_agent"),
        num_threads=threads,
        display_progress=False,
    )
    with dspy.context(lm=lm):
        if evaluate(_program()).score < 100:
            raise SystemExit("the endpoint was not understood")


if __name__ == "__main__":
    main()
