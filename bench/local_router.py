"""How often a local router is right, how sure it is, and what a decision costs, on real queries and without a model.

    .venv/bin/python bench/local_router.py FILE.jsonl --label agent --counts 100 200 400 1000 4000 [--encoder .encoder]

Each line of the file is an object with a `query` and its right label. For each seed, a part of the queries is set
aside, and no router sees it. Routers are trained, stored, loaded and asked by the functions that runs and applications
use. The times of decisions are CPU time, because a decision waits for nothing and other processes may disturb it. With
the folder of a sentence encoder, the routers use it. Beside each is the naive alternative: to give the most frequent
label always.

"Without a model" is the share of the decisions that a careful router answers before a model that is always right, the
hardest one to stand before. Its threshold is chosen on other queries, as in a run. "Lost" is what that costs in points,
and "proven" how often the unseen queries prove that it is no more than one point.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, quantiles

from autoopt_pipeline.evaluation.alpha_ledger import alpha_of_charge
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.not_worse import run_not_worse_test
from autoopt_pipeline.evaluation.sequential_test import Batch
from autoopt_pipeline.modules.cascade import Cascade, cascades_in
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.encoder import open_encoder
from autoopt_pipeline.modules.spec import Example, Label, Provenance
from autoopt_pipeline.optimization.optimizers import SEED
from autoopt_pipeline.optimization.router_training import careful_threshold, train_router
from autoopt_pipeline.registry.records import Program
from autoopt_pipeline.registry.serialization import deserialize, serialize

ROUTING = get_module("routing")


# Queries with which a run chooses, beside those that the router learns from.
DEV = 100

MAX_LOSS = 0.01


def measure(
    learnt: Sequence[Example],
    dev: Sequence[Example],
    unseen: Sequence[Example],
    labels: Sequence[Label],
    encoder: Path | None,
) -> dict[str, float]:
    """Train a router on some examples, and ask it others."""
    began = time.perf_counter()
    router = train_router(ROUTING, learnt, seed=SEED, encoder=open_encoder(encoder) if encoder else None)
    trained = time.perf_counter()
    stored = serialize(ROUTING, "bench", labels, Cascade(ROUTING, labels, ROUTING.build_program(labels), router, 0.0))
    raw = stored.encode()
    loading = time.perf_counter()
    program = deserialize(ROUTING, labels, Program.model_validate_json(raw), encoder=encoder)
    loaded = time.perf_counter()
    (cascade,) = cascades_in(program)
    right, shares, seconds = [], [], []
    for example in unseen:
        asked = time.thread_time()
        answer = cascade(**example.inputs)
        seconds.append(time.thread_time() - asked)
        right.append(answer.agent == example.label)
        shares.append(answer.confidence)
    frequent = Counter(example.label for example in learnt).most_common(1)[0][0]
    surest = sorted(zip(shares, right, strict=True), reverse=True)[: len(unseen) // 2]
    ordered = quantiles(seconds, n=100)
    chosen = [cascade(**example.inputs) for example in dev]
    scores = [float(answer.agent == example.label) for answer, example in zip(chosen, dev, strict=True)]
    threshold = careful_threshold([answer.confidence for answer in chosen], scores, [1.0] * len(dev)) or 2.0
    lost = [share >= threshold and not ok for share, ok in zip(shares, right, strict=True)]
    return {
        "naive": 100 * fmean(example.label == frequent for example in unseen),
        "right": 100 * fmean(right),
        "surest half": 100 * fmean(ok for _, ok in surest),
        "confidence": 100 * fmean(shares),
        "without a model": 100 * fmean(share >= threshold for share in shares),
        "lost": 100 * fmean(lost),
        "proven": 100 * run_not_worse_test([_compared(lost)], MAX_LOSS, alpha_of_charge(1)).proven,
        "p50 ms": 1e3 * ordered[49],
        "p95 ms": 1e3 * ordered[94],
        "train s": trained - began,
        "load ms": 1e3 * (loaded - loading),
        "KB": len(raw) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--label", default="agent", help="the field with the right label")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 200, 400, 1000, 4000])
    parser.add_argument("--encoder", type=Path, help="folder of a sentence encoder, as 'make encoder' makes it")
    parser.add_argument("--unseen", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.file.read_text().splitlines() if line.strip()]
    examples = [_example(row["query"], str(row[options.label])) for row in rows]
    labels = [Label(name) for name in sorted({example.label for example in examples})]
    print(f"{len(examples)} queries, {len(labels)} labels, {options.unseen} unseen, means of {options.seeds} seeds")
    if options.encoder:
        began = time.perf_counter()
        encoder = open_encoder(options.encoder)
        print(f"encoder {encoder.sha256[:12]}, loaded in {time.perf_counter() - began:.2f} s")
    print()
    for place, count in enumerate(options.counts):
        results = []
        for seed in range(options.seeds):
            shuffled = random.Random(seed).sample(examples, len(examples))  # noqa: S311 - reproducible, no secret
            unseen, rest = shuffled[: options.unseen], shuffled[options.unseen :]
            results.append(measure(rest[DEV:][:count], rest[:DEV], unseen, labels, options.encoder))
        if not place:
            print("| learnt from | " + " | ".join(results[0]) + " |\n|--:" + "|--:" * len(results[0]) + "|")
        print(f"| {count} | " + " | ".join(f"{fmean(r[name] for r in results):.3g}" for name in results[0]) + " |")


def _compared(lost: Sequence[bool]) -> Batch:
    """Compare a router, wrong where it `lost`, with a model that is always right."""
    right, wrong = ScoredAnswer(1.0, "", None), ScoredAnswer(0.0, "", None)
    losses, alike = PairedCase("", right, wrong), PairedCase("", right, right)
    return Batch((losses,) * sum(lost), sum(lost), 0, (alike,) * (len(lost) - sum(lost)))


def _example(query: str, label: str) -> Example:
    return Example({"query": query}, {"agent": label}, label, Provenance.HUMAN, True, datetime.now(UTC), "", "")


if __name__ == "__main__":
    main()
