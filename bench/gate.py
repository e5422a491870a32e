"""Does the promotion gate keep its word? Nights of simulated attempts, judged by the gate's own functions.

    python bench/gate.py --histories 1000 --seed 1 --reviewed 100

prints how often candidates that are no better are promoted, and how soon better ones are, beside two simpler rules.
What is assumed, and what came out, stands in bench/README.md.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from autoopt_pipeline.artifacts.store import LedgerEntry
from autoopt_pipeline.optimization.cases import Case, Graded
from autoopt_pipeline.optimization.gate import MIN_HOLDOUT, Verdict, judge
from autoopt_pipeline.optimization.ledger import next_charge
from autoopt_pipeline.optimization.paired import sign_flip_p
from autoopt_pipeline.optimization.retry import needed_evidence
from autoopt_pipeline.optimization.split import DEV_SHARE, TRAIN_SHARE
from autoopt_pipeline.optimization.trial import follow_up

LOOKBACK = 30
MIN_DEV, MAX_DEV, MAX_HOLDOUT = 10, 100, 300
MIN_SAMPLES = 100
CANDIDATES = 4
CLASSES = {"a": 0.3, "b": 0.25, "c": 0.2, "d": 0.15, "e": 0.1}
INCUMBENT_SCORE = 0.7
CHURN = (0.02, 0.10)
"""Share of all traces that a candidate changes for the worse (for the better, where it is worse): anything between."""


@dataclass(frozen=True)
class Scenario:
    """All candidates are equal to the incumbent for `equal_nights`, from then on better by `gain`; `nights` in all."""

    name: str
    gain: float
    nights: int = 30
    equal_nights: int = 0

    def better(self, night: int) -> bool:
        return self.gain > 0 and night > self.equal_nights

    @property
    def any_better(self) -> bool:
        return self.better(self.nights)

    @property
    def any_useless(self) -> bool:
        return not self.better(1)


SCENARIOS = (
    Scenario("equal", 0.0),
    Scenario("3 points worse", -0.03),
    Scenario("5 points better", 0.05),
    Scenario("8 points better", 0.08),
    Scenario("15 points better", 0.15),
    Scenario("equal for 30 nights, then 8 points better for 30", 0.08, nights=60, equal_nights=30),
)


@dataclass(frozen=True)
class Truth:
    """What is true of a candidate: the shares of all traces that it fixes and breaks."""

    fixes: float
    breaks: float


@dataclass(frozen=True)
class Trace:
    """One reviewed trace of the holdout: the class of its right answer, and what the incumbent says."""

    label: str
    incumbent: Graded


@dataclass
class Tenant:
    """One tenant's module: `reviewed` traces a night, as many unreviewed ones, and what comes of them."""

    scenario: Scenario
    reviewed: int
    rng: random.Random
    dev: int = 0
    holdout: list[Trace] = field(default_factory=list)
    churn: float = field(init=False)

    def __post_init__(self) -> None:
        self.churn = self.rng.uniform(*CHURN)

    def night(self) -> list[Trace]:
        """One more night. The new traces on the holdout's side are returned too."""
        holdout_share = 1 - TRAIN_SHARE - DEV_SHARE
        sides = self.rng.choices(["train", "dev", "holdout"], [TRAIN_SHARE, DEV_SHARE, holdout_share], k=self.reviewed)
        labels = self.rng.choices(list(CLASSES), list(CLASSES.values()), k=sides.count("holdout"))
        new = [Trace(label, self._answer(label, self.rng.random() < INCUMBENT_SCORE)) for label in labels]
        self.dev = min(self.dev + sides.count("dev"), MAX_DEV)
        self.holdout = [*self.holdout, *new][-MAX_HOLDOUT:]
        return new

    def truth(self, night: int) -> Truth:
        gain = self.scenario.gain if night > self.scenario.equal_nights else 0.0
        return Truth(fixes=self.churn + max(gain, 0), breaks=self.churn + max(-gain, 0))

    def search(self, night: int) -> Truth | None:
        """The best of several candidates on dev, if it beats the incumbent there."""
        truth = self.truth(night)
        weights = [truth.fixes, truth.breaks, 1 - truth.fixes - truth.breaks]
        wins = (sum(self.rng.choices([1, -1, 0], weights, k=self.dev)) > 0 for _ in range(CANDIDATES))
        return truth if self.dev >= MIN_DEV and any(wins) else None

    def ask(self, traces: Sequence[Trace], truth: Truth) -> list[Case]:
        """A candidate's answers beside the incumbent's."""
        stays_right = 1 - truth.breaks / INCUMBENT_SCORE
        gets_right = truth.fixes / (1 - INCUMBENT_SCORE)
        chances = [stays_right if trace.incumbent.score else gets_right for trace in traces]
        return [
            Case(trace.label, trace.incumbent, self._answer(trace.label, self.rng.random() < chance))
            for trace, chance in zip(traces, chances, strict=True)
        ]

    def ask_unreviewed(self, truth: Truth) -> list[Case]:
        """The same on unreviewed traces, whose labels are the incumbent's own answers."""
        return [
            Case(
                case.incumbent.label,
                Graded(1.0, case.incumbent.label, case.incumbent.confidence),
                Graded(float(case.candidate.label == case.incumbent.label), case.candidate.label, None),
            )
            for case in self.ask(self.holdout, truth)
            if case.incumbent.label is not None
        ]

    def _answer(self, label: str, right: bool) -> Graded:
        return self.rng.choice(ANSWERS[label, right])


def _answers() -> dict[tuple[str, bool], list[Graded]]:
    """What any program may answer to a trace of a class, right or wrong; one wrong answer in nine is no valid one."""
    answers = {}
    for label in CLASSES:
        answers[label, True] = [Graded(1.0, label, confidence) for confidence in (0.6, 0.7, 0.8, 0.9)]
        others = [other for other in CLASSES if other != label]
        wrong = [Graded(0.0, other, confidence) for other in others for confidence in (0.4, 0.5, 0.6, 0.7)]
        answers[label, False] = [*wrong, *[Graded(0.0, None, None)] * 2]
    return answers


ANSWERS = _answers()

Rule = Callable[[Tenant], int | None]
"""Plays a tenant's nights up to the first promotion. Returns its night, from 1, or None."""


def our_gate(tenant: Tenant) -> int | None:
    """A look at the holdout when enough evidence has come, a trial where that says so, and all of it charged."""
    ledger: list[LedgerEntry] = []
    verdict, window, evidence = "", 0, 0
    waiting: Truth | None = None
    alpha = 0.0
    in_trial: list[Case] = []

    def charge(kind: Literal["look", "trial"]) -> float:
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=night)
        ledger.append(
            next_charge(
                ledger,
                kind=kind,
                attempt=str(at),
                epoch=0,
                at=at,
                candidate_digest=str(at),
                holdout_digest=str(at),
                incumbent=None,
            )
        )
        return ledger[-1].alpha

    for night in range(1, tenant.scenario.nights + 1):
        new = tenant.night()
        evidence += 2 * tenant.reviewed
        if waiting:
            in_trial += tenant.ask(new, waiting)
        if evidence < needed_evidence(MIN_SAMPLES, window, verdict) or len(tenant.holdout) < MIN_HOLDOUT:
            continue
        window, evidence = 2 * tenant.reviewed * min(night, LOOKBACK), 0
        if waiting:
            verdict = follow_up(in_trial, alpha=alpha).verdict if in_trial else Verdict.WAITING
        elif finalist := tenant.search(night):
            cases, guard = tenant.ask(tenant.holdout, finalist), tenant.ask_unreviewed(finalist)
            verdict = judge(cases, guard, alpha=charge("look")).verdict
            if verdict is Verdict.WAITING:
                waiting, alpha, in_trial = finalist, charge("trial"), []
        else:
            verdict = Verdict.REJECTED
        if verdict is Verdict.PROMOTED:
            return night
        if verdict is Verdict.REJECTED:
            waiting = None
    return None


def every_night(promotes: Callable[[Sequence[float]], bool]) -> Rule:
    """A new finalist every night, and one look at its differences on the holdout."""

    def rule(tenant: Tenant) -> int | None:
        for night in range(1, tenant.scenario.nights + 1):
            tenant.night()
            if len(tenant.holdout) >= MIN_HOLDOUT and (finalist := tenant.search(night)):
                cases = tenant.ask(tenant.holdout, finalist)
                if promotes([case.difference for case in cases]):
                    return night
        return None

    return rule


RULES: dict[str, Rule] = {
    "our gate": our_gate,
    "p <= 0.05 every night": every_night(lambda differences: sign_flip_p(differences) <= 0.05),
    "higher score every night": every_night(lambda differences: sum(differences) > 0),
}


@dataclass(frozen=True)
class Outcome:
    """Shares of histories by their first promotion: of a candidate that was no better, or of one that was.

    `mean_night` counts from when candidates are better, None where none was promoted.
    """

    falsely: float
    rightly: float
    mean_night: float | None


def play(rule: Rule, scenario: Scenario, *, histories: int, seed: int, reviewed: int) -> Outcome:
    """Many histories of one scenario; the same arguments give the same outcome."""
    seeds = [f"{seed} {scenario.name} {number}" for number in range(histories)]
    promoted = [rule(Tenant(scenario, reviewed, random.Random(own))) for own in seeds]  # noqa: S311
    nights = [night for night in promoted if night is not None]
    right = [night - scenario.equal_nights for night in nights if scenario.better(night)]
    return Outcome(
        falsely=(len(nights) - len(right)) / histories,
        rightly=len(right) / histories,
        mean_night=sum(right) / len(right) if right else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=1000, help="for each line of the table")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reviewed", type=int, default=100, help="reviewed traces a night")
    args = parser.parse_args()
    print("| candidates | rule | promoted falsely | promoted rightly | in night, on average |")
    print("|---|---|--:|--:|--:|")
    for scenario in SCENARIOS:
        for name, rule in RULES.items():
            result = play(rule, scenario, histories=args.histories, seed=args.seed, reviewed=args.reviewed)
            falsely = f"{100 * result.falsely:.1f} %" if scenario.any_useless else ""
            rightly = f"{100 * result.rightly:.1f} %" if scenario.any_better else ""
            night = f"{result.mean_night:.1f}" if result.mean_night is not None else ""
            print(f"| {scenario.name} | {name} | {falsely} | {rightly} | {night} |", flush=True)


if __name__ == "__main__":
    main()
