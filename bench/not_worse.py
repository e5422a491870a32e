"""Is a cheaper candidate promoted only where it loses no more than the margin? Judged by the gate's own functions.

    python bench/not_worse.py --tests 1000 --seed 1

prints how often candidates that differ from the incumbent on a share of the traces, and gain or lose on average, are
promoted, after how many traces and reviews, beside two simpler rules. All reviews come; see bench/README.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from unittest.mock import patch

import numpy as np

from autoopt_pipeline.evaluation import gate
from autoopt_pipeline.evaluation.alpha_ledger import alpha_of_charge
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.gate import decide
from autoopt_pipeline.evaluation.not_worse import MOST_TRACES
from autoopt_pipeline.evaluation.sequential_test import MAX_BATCH, Batch, TestResult, run_test
from autoopt_pipeline.evaluation.statistics import sign_flip_p
from autoopt_pipeline.registry.records import Verdict

RIGHT, WRONG = ScoredAnswer(1.0, "a", 0.8), ScoredAnswer(0.0, "b", 0.8)
WON, LOST, ALIKE = PairedCase("a", WRONG, RIGHT), PairedCase("a", RIGHT, WRONG), PairedCase("a", RIGHT, RIGHT)
ALPHA = alpha_of_charge(1)


@dataclass(frozen=True)
class Played:
    """One test: whether it promoted, and the traces and reviews that it took."""

    promoted: bool
    traces: int
    reviews: int


def drawn(rng: np.random.Generator, disagreements: float, gain: float) -> Batch:
    """A batch of traces, on which the candidate wins and loses by chance."""
    won, lost = (disagreements + gain) / 2, (disagreements - gain) / 2
    wins, losses, alike = rng.multinomial(MAX_BATCH, [won, lost, 1 - won - lost])
    cases = rng.permutation(np.repeat([True, False], [wins, losses])).tolist()
    return Batch(tuple(WON if win else LOST for win in cases), wins + losses, 0, (), (ALIKE,) * int(alike))


def quick_test(batches: Sequence[Batch], alpha: float) -> TestResult:
    """`run_test`, but it is left out where the candidate has not even a lead of three cases."""
    lead = sum(case.difference for batch in batches for case in batch.reviewed)
    return run_test(batches, alpha) if lead >= 3 else TestResult(False, 1.0, alpha)


def our_gate(rng: np.random.Generator, disagreements: float, gain: float, max_loss: float | None) -> Played:
    """Draw batches until the gate decides. Where it stops before a review, none is counted."""
    batches: list[Batch] = []
    while True:
        batch = drawn(rng, disagreements, gain)
        unreviewed = replace(batch, reviewed=(), alike_first=0)
        before = decide([*batches, unreviewed], alpha=ALPHA, max_loss=max_loss).verdict
        if before is not Verdict.AWAITING_REVIEWS and batch.disagreements:
            return finished(before, [*batches, unreviewed])
        batches.append(batch)
        if (verdict := decide(batches, alpha=ALPHA, max_loss=max_loss).verdict) is not Verdict.INCONCLUSIVE:
            return finished(verdict, batches)


def finished(verdict: Verdict, batches: Sequence[Batch]) -> Played:
    return Played(
        verdict is Verdict.PROMOTED,
        sum(batch.drawn for batch in batches),
        sum(len(batch.reviewed) for batch in batches),
    )


def one_look(rng: np.random.Generator, disagreements: float, gain: float, max_loss: float | None, rule: str) -> Played:
    """Decide by one batch: the loss is not significant, or its estimate is within the margin."""
    batch = drawn(rng, disagreements, gain)
    losses = [-case.difference for case in batch.reviewed]
    within = {
        "not significantly worse": sign_flip_p(losses) > 0.05,
        "estimate within the margin": sum(losses) <= (max_loss or 0.0) * batch.drawn,
    }
    return Played(within[rule], batch.drawn, batch.disagreements)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=1000, help="for each line of the table")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rules = ("our gate", "our gate without objective", "not significantly worse", "estimate within the margin")
    print(f"alpha {ALPHA:.3f}, batches of {MAX_BATCH}, at most {MOST_TRACES} traces\n")
    print("| margin | candidate disagrees on | gains | rule | promoted | traces, median | reviews, mean |")
    print("|--:|--:|--:|---|--:|--:|--:|")
    truths = [
        (share, gain, margin)
        for margin in (0.01, 0.02)
        for share in (0.02, 0.05, 0.10)
        for gain in (-2 * margin, -margin, 0.0, 0.01, 0.02)
        if abs(gain) <= share
    ]
    for number, (share, gain, margin) in enumerate(truths):
        for rule in rules:
            rng = np.random.default_rng([args.seed, number])
            with patch.object(gate, "run_test", quick_test):
                played = [
                    our_gate(rng, share, gain, margin if rule == "our gate" else None)
                    if rule.startswith("our gate")
                    else one_look(rng, share, gain, margin, rule)
                    for _ in range(args.tests)
                ]
            print(
                f"| {100 * margin:.0f} | {100 * share:.0f} % | {100 * gain:+.0f} | {rule} "
                f"| {100 * fmean(one.promoted for one in played):.1f} % "
                f"| {median(one.traces for one in played):.0f} | {fmean(one.reviews for one in played):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
