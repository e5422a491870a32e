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
from functools import partial
from typing import Literal

from autoopt_pipeline.evaluation.alpha_ledger import next_charge
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.gate import MIN_HOLDOUT, judge
from autoopt_pipeline.evaluation.sequential_test import decide_sequentially
from autoopt_pipeline.evaluation.split import DEV_SHARE, TRAIN_SHARE
from autoopt_pipeline.evaluation.statistics import sign_flip_p
from autoopt_pipeline.registry.records import LedgerEntry, Verdict
from autoopt_pipeline.scheduling.evidence_backoff import evidence_required

LOOKBACK = 30
MIN_DEV, MAX_DEV, MAX_HOLDOUT = 10, 100, 300
MIN_SAMPLES = 100
CANDIDATES = 4
CLASSES = {"a": 0.3, "b": 0.25, "c": 0.2, "d": 0.15, "e": 0.1}
INCUMBENT_SCORE = 0.7
CHURN = (0.02, 0.10)
"""Share of all traces that a candidate changes for the worse (for the better, where it is worse): anything between."""
ASKINGS = 5
"""How often the rule that asks until it likes the answer repeats a look."""


@dataclass(frozen=True)
class Flips:
    """A model that does not repeat itself: `share` of its answers name another class than they otherwise would.

    Which ones is drawn anew at each asking; where it is `sticky`, once for a request, whenever and however often that
    is asked. Different requests are drawn independently.
    """

    share: float = 0.0
    sticky: bool = False

    def __str__(self) -> str:
        return f"{100 * self.share:.0f} % of answers flip, {'once for a request' if self.sticky else 'at each asking'}"


NO_FLIPS = Flips()


@dataclass(frozen=True)
class Scenario:
    """All candidates are equal to the incumbent for `equal_nights`, from then on better by `gain`; `nights` in all.

    `gain` is what a model that repeats itself would show; `flips` take from it, and take as much from every candidate.
    """

    name: str
    gain: float
    nights: int = 30
    equal_nights: int = 0
    flips: Flips = NO_FLIPS

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
UNSTEADY = tuple(
    Scenario(f"{what}; {flips}", gain, flips=flips)
    for what, gain, shares in (("equal", 0.0, (0.05, 0.20)), ("5 points better", 0.05, (0.05, 0.20)))
    for share in shares
    for flips in (Flips(share), Flips(share, sticky=True))
)
"""The same with a model that does not repeat itself."""


@dataclass(frozen=True)
class Truth:
    """What is true of a candidate: the shares of all traces that it fixes and breaks."""

    fixes: float
    breaks: float

    def seen_through(self, flips: Flips) -> "Truth":
        """The shares of traces on which it comes out better and worse, where answers of both programs flip."""
        stays_right, becomes_right = 1 - flips.share, flips.share * RIGHT_BY_FLIPPING
        chance = {True: stays_right, False: becomes_right}
        shares = {
            (True, True): INCUMBENT_SCORE - self.breaks,
            (True, False): self.breaks,
            (False, True): self.fixes,
            (False, False): 1 - INCUMBENT_SCORE - self.fixes,
        }
        return Truth(
            fixes=sum(share * (1 - chance[old]) * chance[new] for (old, new), share in shares.items()),
            breaks=sum(share * chance[old] * (1 - chance[new]) for (old, new), share in shares.items()),
        )


@dataclass(frozen=True)
class Trace:
    """One reviewed trace of the holdout: the class of its right answer, and what the incumbent says.

    `right` is whether that is right unless it flips; `incumbent` holds the flips that are drawn once for a request.
    """

    label: str
    right: bool
    incumbent: ScoredAnswer


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
        new = [self._trace(label, self.rng.random() < INCUMBENT_SCORE) for label in labels]
        self.dev = min(self.dev + sides.count("dev"), MAX_DEV)
        self.holdout = [*self.holdout, *new][-MAX_HOLDOUT:]
        return new

    def truth(self, night: int) -> Truth:
        gain = self.scenario.gain if night > self.scenario.equal_nights else 0.0
        return Truth(fixes=self.churn + max(gain, 0), breaks=self.churn + max(-gain, 0))

    def search(self, night: int) -> Truth | None:
        """The best of several candidates on dev, if it beats the incumbent there."""
        truth = self.truth(night)
        seen = truth.seen_through(self.scenario.flips)
        weights = [seen.fixes, seen.breaks, 1 - seen.fixes - seen.breaks]
        wins = (sum(self.rng.choices([1, -1, 0], weights, k=self.dev)) > 0 for _ in range(CANDIDATES))
        return truth if self.dev >= MIN_DEV and any(wins) else None

    def ask(self, traces: Sequence[Trace], truth: Truth) -> list[PairedCase]:
        """A candidate's answers beside the incumbent's."""
        return self.compare(traces, self.answers(traces, truth))

    def answers(self, traces: Sequence[Trace], truth: Truth) -> list[ScoredAnswer]:
        """What a candidate says to traces, without the flips of an asking."""
        stays_right = 1 - truth.breaks / INCUMBENT_SCORE
        gets_right = truth.fixes / (1 - INCUMBENT_SCORE)
        chances = [stays_right if trace.right else gets_right for trace in traces]
        return [
            self._request(trace.label, self.rng.random() < chance)
            for trace, chance in zip(traces, chances, strict=True)
        ]

    def compare(self, traces: Sequence[Trace], candidate: Sequence[ScoredAnswer]) -> list[PairedCase]:
        """Ask both programs, each trace once."""
        return [
            PairedCase(trace.label, self._asking(trace.label, trace.incumbent), self._asking(trace.label, answer))
            for trace, answer in zip(traces, candidate, strict=True)
        ]

    def ask_unreviewed(self, truth: Truth) -> list[PairedCase]:
        """The same on unreviewed traces, whose labels are what the incumbent answered when it served them."""
        served = [self._asking(trace.label, trace.incumbent).label for trace in self.holdout]
        return [
            PairedCase(label, _agreeing(case.incumbent, label), _agreeing(case.candidate, label))
            for case, label in zip(self.ask(self.holdout, truth), served, strict=True)
            if label is not None
        ]

    def _trace(self, label: str, right: bool) -> Trace:
        return Trace(label, right, self._request(label, right))

    def _request(self, label: str, right: bool) -> ScoredAnswer:
        """What a program's request for a trace comes to, with the flips that are drawn once for it."""
        answer = self.rng.choice(ANSWERS[label, right])
        return self._flipped(label, answer) if self.scenario.flips.sticky else answer

    def _asking(self, label: str, answer: ScoredAnswer) -> ScoredAnswer:
        """What comes of asking once, with the flips that are drawn at each asking."""
        return answer if self.scenario.flips.sticky else self._flipped(label, answer)

    def _flipped(self, label: str, answer: ScoredAnswer) -> ScoredAnswer:
        share = self.scenario.flips.share
        if not share or self.rng.random() >= share:
            return answer
        return _naming(self.rng.choice(OTHERS[answer.label]), label, self.rng.choice(CONFIDENCES))


def _agreeing(answer: ScoredAnswer, label: str) -> ScoredAnswer:
    return ScoredAnswer(float(answer.label == label), answer.label, answer.confidence)


def _naming(named: str, label: str, confidence: float) -> ScoredAnswer:
    return ScoredAnswer(float(named == label), named, confidence)


def _answers() -> dict[tuple[str, bool], list[ScoredAnswer]]:
    """What any program may answer to a trace of a class, right or wrong; one wrong answer in nine is no valid one."""
    answers = {}
    for label in CLASSES:
        answers[label, True] = [ScoredAnswer(1.0, label, confidence) for confidence in (0.6, 0.7, 0.8, 0.9)]
        others = [other for other in CLASSES if other != label]
        wrong = [ScoredAnswer(0.0, other, confidence) for other in others for confidence in (0.4, 0.5, 0.6, 0.7)]
        answers[label, False] = [*wrong, *[ScoredAnswer(0.0, None, None)] * 2]
    return answers


ANSWERS = _answers()
CONFIDENCES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OTHERS = {answer: [label for label in CLASSES if label != answer] for answer in (*CLASSES, None)}
RIGHT_BY_FLIPPING = 8 / 9 / 4 + 1 / 9 / 5
"""Chance that a wrong answer which flips becomes right."""

Rule = Callable[[Tenant], int | None]
"""Plays a tenant's nights up to the first promotion. Returns its night, from 1, or None."""


def our_gate(tenant: Tenant, askings: int = 1) -> int | None:
    """A look at the holdout when enough evidence has come, a sequential test where that says so, and all of it charged.

    With more `askings` a look that does not promote is repeated, at the same charge.
    """
    ledger: list[LedgerEntry] = []
    verdict, window, evidence = "", 0, 0
    waiting: Truth | None = None
    alpha = 0.0
    in_test: list[PairedCase] = []

    def charge(kind: Literal["holdout_test", "sequential_test"]) -> float:
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
            in_test += tenant.ask(new, waiting)
        if evidence < evidence_required(MIN_SAMPLES, window, verdict) or len(tenant.holdout) < MIN_HOLDOUT:
            continue
        window, evidence = 2 * tenant.reviewed * min(night, LOOKBACK), 0
        if waiting:
            verdict = decide_sequentially(in_test, alpha=alpha).verdict if in_test else Verdict.INCONCLUSIVE
        elif finalist := tenant.search(night):
            answers, guard = tenant.answers(tenant.holdout, finalist), tenant.ask_unreviewed(finalist)
            allowed = charge("holdout_test")
            for _ in range(askings):
                verdict = judge(tenant.compare(tenant.holdout, answers), guard, alpha=allowed).verdict
                if verdict is Verdict.PROMOTED:
                    break
            if verdict is Verdict.INCONCLUSIVE:
                waiting, alpha, in_test = finalist, charge("sequential_test"), []
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


MORE_RULES: dict[str, Rule] = RULES | {
    f"our gate, each look repeated {ASKINGS} times": partial(our_gate, askings=ASKINGS)
}
"""And what comes of asking until the answer is liked, which costs nothing where a model repeats itself."""


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
    for scenarios, rules in ((SCENARIOS, RULES), (UNSTEADY, MORE_RULES)):
        print("\n| candidates | rule | promoted falsely | promoted rightly | in night, on average |")
        print("|---|---|--:|--:|--:|")
        for scenario in scenarios:
            for name, rule in rules.items():
                result = play(rule, scenario, histories=args.histories, seed=args.seed, reviewed=args.reviewed)
                print(_row(scenario, name, result), flush=True)


def _row(scenario: Scenario, rule: str, result: Outcome) -> str:
    falsely = f"{100 * result.falsely:.1f} %" if scenario.any_useless else ""
    rightly = f"{100 * result.rightly:.1f} %" if scenario.any_better else ""
    night = f"{result.mean_night:.1f}" if result.mean_night is not None else ""
    return f"| {scenario.name} | {rule} | {falsely} | {rightly} | {night} |"


if __name__ == "__main__":
    main()
