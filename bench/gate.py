"""Does the promotion gate keep its word? Simulated nights, judged by the gate's own functions.

    python bench/gate.py --histories 1000 --seed 1

prints how often candidates that are no better are promoted, how soon better ones are, and after how many reviews,
beside simpler rules. What is assumed, and what came out, stands in bench/README.md.
"""

import argparse
import math
import zlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from autoopt_pipeline.evaluation import gate, sequential_test
from autoopt_pipeline.evaluation.alpha_ledger import alpha_of_charge
from autoopt_pipeline.evaluation.cases import Judged, PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.gate import MIN_GAIN, MIN_HOLDOUT, decide
from autoopt_pipeline.evaluation.sequential_test import MAX_BATCH, Batch, TestResult, known_batch, run_test
from autoopt_pipeline.evaluation.split import DEV_SHARE, HOLDOUT_SHARE
from autoopt_pipeline.evaluation.statistics import log_e_value, sign_flip_p
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.reviews.order import in_order, to_review
from autoopt_pipeline.scheduling.evidence_backoff import evidence_required

TRACES = 200  # a night
LOOKBACK, MIN_SAMPLES, MIN_DEV, MAX_DEV, CANDIDATES = 30, 100, 10, 100, 4
CLASSES, SHARES = "abcde", (0.3, 0.25, 0.2, 0.15, 0.1)
BREAKS = (0.02, 0.10)  # the share of all traces that a candidate breaks (or fixes, where it is worse)
JUDGE = 0.85  # how often an LLM judge is right

# An answer is the distance of its class from the right one.
RIGHT = 0

Truth = tuple[float, float]  # the shares of all traces that a candidate fixes and breaks
History = tuple[int | None, int]  # the night of the first promotion, from 1, and the reviews until then or the end


@dataclass(frozen=True)
class Scenario:
    """All candidates are equal to the incumbent for `equal_nights`, and better by `gain` from then on.

    The incumbent is right on `score` of all traces. On `ties` of them both are wrong in different ways. A share of all
    answers `flips` to another class, anew at each asking, or once for a request (`sticky`).
    """

    name: str
    gain: float
    nights: int = 30
    equal_nights: int = 0
    score: float = 0.7
    ties: float = 0.05
    flips: float = 0.0
    sticky: bool = False


GAINS = {"equal": 0.0, "3 points worse": -0.03}
GAINS |= {f"{points} points better": points / 100 for points in (5, 8, 15)}
SCENARIOS = [Scenario(name, gain) for name, gain in GAINS.items()]
SCENARIOS += [Scenario("equal for 30 nights, then 8 points better for 30", 0.08, nights=60, equal_nights=30)]
UNSTEADY = [
    Scenario(f"{name}; {100 * share:.0f} % of answers flip, {how}", GAINS[name], flips=share, sticky=sticky)
    for name in ("equal", "5 points better")
    for share in (0.05, 0.20)
    for how, sticky in (("at each asking", False), ("once for a request", True))
]
UNREVIEWED = [Scenario(name, gain) for name, gain in GAINS.items()]
UNREVIEWED += [Scenario(name, gain, score=0.8, ties=0.03) for name, gain in GAINS.items()]
UNREVIEWED += [Scenario("30 points better", 0.30, score=0.55)]  # a better incumbent leaves no room for 30 points
JUDGED = [Scenario(name, gain) for name, gain in GAINS.items() if name != "5 points better"] + UNREVIEWED[-1:]


class Tenant:
    """One tenant's module with its traces on the holdout's side. So many traces a night `may_judge`."""

    def __init__(self, scenario: Scenario, seed: Sequence[int], may_judge: int) -> None:
        self.scenario, self.may_judge, self.dev = scenario, may_judge, 0
        self.rng = np.random.default_rng(seed)
        room = 1 - scenario.score - scenario.ties - max(scenario.gain, 0)
        self.breaks = BREAKS[0] + max(0.0, min(BREAKS[1], room) - BREAKS[0]) * self.rng.random()
        self.label, self.steady, self.served = np.zeros((3, 0), int)
        self.reviewed = np.zeros(0, bool)

    def night(self) -> None:
        self.dev = min(self.dev + self.rng.binomial(TRACES, DEV_SHARE), MAX_DEV)
        count = self.rng.binomial(self.may_judge, HOLDOUT_SHARE)
        steady = np.where(self.rng.random(count) < self.scenario.score, RIGHT, self.rng.integers(1, 5, count))
        self.label = np.append(self.label, self.rng.choice(len(CLASSES), count, p=SHARES))
        self.steady = np.append(self.steady, steady)
        self.served = np.append(self.served, self._flip(steady) if self.scenario.sticky else steady)
        self.reviewed = np.append(self.reviewed, np.zeros(count, bool))

    def truth(self, night: int) -> Truth:
        gain = self.scenario.gain if night > self.scenario.equal_nights else 0.0
        return self.breaks + max(gain, 0), self.breaks + max(-gain, 0)

    def seen(self, truth: Truth) -> Truth:
        """The shares of traces on which a candidate comes out better and worse, where answers of both programs flip."""
        (fixes, breaks), score, flips = truth, self.scenario.score, self.scenario.flips
        shares = np.array([[1 - score - fixes, fixes], [breaks, score - breaks]])
        right = np.array([flips / 4, 1 - flips])
        return float((1 - right) @ shares @ right), float(right @ shares @ (1 - right))

    def search(self, night: int) -> Truth | None:
        """The best of several candidates on dev, if it beats the incumbent there."""
        better, worse = self.seen(self.truth(night))
        counts = self.rng.multinomial(self.dev, [better, worse, 1 - better - worse], CANDIDATES)
        return self.truth(night) if self.dev >= MIN_DEV and (counts[:, 0] > counts[:, 1]).any() else None

    def answers(self, at: np.ndarray, truth: Truth) -> np.ndarray:
        """What a candidate says to traces, without the flips of an asking."""
        (fixes, breaks), score, ties = truth, self.scenario.score, self.scenario.ties
        old, chance = self.steady[at], self.rng.random(len(at))
        right, changes = old == RIGHT, np.where(old == RIGHT, breaks / score, fixes / (1 - score))
        other = 1 + (old - 1 + self.rng.integers(1, 4, len(at))) % 4
        new = np.where(~right & (chance < changes + ties / (1 - score)), other, old)
        new = np.where(chance < changes, np.where(right, self.rng.integers(1, 5, len(at)), RIGHT), new)
        return self._flip(new) if self.scenario.sticky else new

    def ask(self, at: np.ndarray, candidate: np.ndarray) -> list[PairedCase]:
        """Ask both programs once."""
        answers = [self.served[at], candidate]
        if not self.scenario.sticky:
            answers = [self._flip(each) for each in answers]
        rows = np.stack([self.label[at], *answers, *self.rng.integers(4, size=(2, len(at)))], axis=1)
        return [paired(*row) for row in rows.tolist()]

    def _flip(self, answers: np.ndarray) -> np.ndarray:
        other = (answers + self.rng.integers(1, 5, len(answers))) % 5
        return np.where(self.rng.random(len(answers)) < self.scenario.flips, other, answers)


@cache
def paired(label: int, incumbent: int, candidate: int, old_confidence: int = 0, new_confidence: int = 0) -> PairedCase:
    def scored(answer: int, confidence: int) -> ScoredAnswer:
        right = answer == RIGHT
        return ScoredAnswer(float(right), CLASSES[(label + answer) % 5], (confidence + (6 if right else 4)) / 10)

    return PairedCase(CLASSES[label], scored(incumbent, old_confidence), scored(candidate, new_confidence))


PRESUMED: dict[str | None, PairedCase] = {name: paired(k, RIGHT, RIGHT) for k, name in enumerate(CLASSES)}
WON, TIE, LOST = paired(0, 1, RIGHT), paired(0, 1, 2), paired(0, RIGHT, 1)


@dataclass(frozen=True)
class Judge:
    """An LLM judge: how often it is right, and on what share it says that the candidate is, whatever is right."""

    right: float
    lean: float = 0.0

    def __str__(self) -> str:
        lean = f", says it of {100 * self.lean:.0f} %" if self.lean else ""
        return f"{100 * self.right:.0f} % right{lean}"


def judged(case: PairedCase, judge: Judge, rng: np.random.Generator) -> PairedCase:
    """A disagreement as this judge sees it, and whether people are asked about it (`judged_cases` does the same)."""
    word = (
        case.difference if rng.random() < judge.right else rng.choice([d for d in (-1, 0, 1) if d != case.difference])
    )
    word = 1.0 if rng.random() < judge.lean else float(word)
    share = 0.0 if word < 0 else sequential_test.ASKED
    incumbent, candidate = (
        replace(answer, score=score)
        for answer, score in ((case.incumbent, float(word < 0)), (case.candidate, float(word > 0)))
    )
    return PairedCase(case.label, incumbent, candidate, Judged(word, share, bool(rng.random() < share)))


@cache
def review_order(different: int, alike: int) -> tuple[bool, ...]:
    """Whether each trace that reviewers are asked about has like answers, in the order of review."""
    traces: list[Any] = [
        SimpleNamespace(span_id=f"{k}", alike=k >= different, is_asked=True) for k in range(different + alike)
    ]
    return tuple(trace.alike for trace in to_review(in_order(traces, seed="")))


Rule = Callable[[Tenant], History]


@cache
def can_prove(moves: int, wins: int, alpha: float) -> bool:
    return sum(math.comb(moves, k) for k in range(wins, moves + 1)) <= alpha * 2**moves


def quick_test(batches: Sequence[Batch], alpha: float) -> TestResult:
    """`run_test`, but it is left out where not even a single look with the whole alpha could be a proof."""
    moves = wins = 0
    if any(batch.spares_reviews for batch in batches):
        return run_test(batches, alpha)
    for difference in differences(batches):
        moves, wins = moves + bool(difference), wins + (difference > 0)
        if 2 * wins > moves and can_prove(moves, wins, alpha):
            return run_test(batches, alpha)
    return TestResult(False, 1.0, alpha)


def differences(batches: Sequence[Batch]) -> list[float]:
    return [case.difference for batch in batches for case in batch.reviewed]


class Test:
    """A test of one finalist: its batches so far, and the traces that were drawn last."""

    def __init__(
        self, tenant: Tenant, truth: Truth, alpha: float, reviews: int | None, lean: float | None, judge: Judge | None
    ) -> None:
        self.tenant, self.truth, self.alpha, self.reviews, self.lean = tenant, truth, alpha, reviews, lean
        self.judge = judge
        self.batches: list[Batch] = []
        self.last: list[Batch] = []
        self.seen = self.tonight = np.zeros(0, int)

    def draw(self) -> bool:
        """Draw traces that this test has not drawn before. Return whether there are any."""
        self.batches, self.last = [*self.batches, *self.last], []
        new = np.setdiff1d(np.arange(len(self.tenant.label)), self.seen)
        known = self.reviews is None and self.lean is None
        self.at = new[-MAX_BATCH:] if known else self.tenant.rng.permutation(new)[:MAX_BATCH]
        self.seen, self.tonight = np.append(self.seen, self.at), new[:0]
        self.candidate = self.tenant.answers(self.at, self.truth)
        return len(self.at) > 0

    def ask(self) -> None:
        self.cases = self.tenant.ask(self.at, self.candidate)
        alike = np.array([case.incumbent.label == case.candidate.label for case in self.cases], bool)
        self.different, self.alike = np.flatnonzero(~alike).tolist(), np.flatnonzero(alike).tolist()
        self.judged: dict[int, PairedCase] = {}
        self.known = self._reviewed()
        if self.judge:
            new = self.different[self.known :]
            self.judged = {k: judged(self.cases[k], self.judge, self.tenant.rng) for k in new}

    def review(self) -> None:
        """Tonight's reviews: of the first traces in the order of review that have none."""
        each = {False: iter(self.different), True: iter(self.alike)}
        order = [
            self.at[trace]
            for like in review_order(len(self.different), len(self.alike))
            if (trace := next(each[like])) not in self.judged or self.judged[trace].by_person
        ]
        self.tonight = np.array([trace for trace in order if not self.tenant.reviewed[trace]][: self.reviews], int)
        self.tenant.reviewed[self.tonight] = True

    def batch(self) -> Batch:
        reviewed = self.tenant.reviewed[self.at].tolist()
        return Batch(
            reviewed=tuple(self._case(k) for k in self.different[: self._reviewed()]),
            disagreements=len(self.different),
            known=self.known,
            agreed=tuple(self.cases[k] for k in self.alike if reviewed[k]),
            presumed=tuple(PRESUMED[self.cases[k].incumbent.label] for k in self.alike if not reviewed[k]),
            rest=tuple(
                case.judged for k in self.different[self._reviewed() :] if (case := self.judged.get(k)) and case.judged
            ),
        )

    def look(self) -> Verdict:
        """Judge the candidate by all batches. An LLM judge's word counts if its lean to the candidate is given."""
        batch = known_batch(self.cases) if self.reviews is None else self.batch()
        if self.lean is not None:
            gains = np.array([self.cases[k].difference for k in self.different])
            won = self.tenant.rng.random(len(gains)) < 0.5 + self.lean / 2 + (JUDGE - 0.5) * gains
            batch = replace(self.batch(), reviewed=tuple(WON if candidate else LOST for candidate in won))
        self.last = [batch]
        return decide([*self.batches, batch], alpha=self.alpha).verdict

    def reviews_to_proof(self) -> int:
        """How many of tonight's reviews were enough."""

        def proven(count: int) -> bool:
            self.tenant.reviewed[self.tonight] = np.arange(len(self.tonight)) < count
            return quick_test([*self.batches, self.batch()], self.alpha).proven

        return bisect_left(range(len(self.tonight)), True, key=proven)

    def _reviewed(self) -> int:
        """How many of the first disagreements have a review."""
        spared = np.array([k in self.judged and not self.judged[k].by_person for k in self.different], bool)
        missing = np.flatnonzero(~(self.tenant.reviewed[self.at[self.different]] | spared))
        return int(missing[0]) if len(missing) else len(self.different)

    def _case(self, k: int) -> PairedCase:
        case = self.judged.get(k, self.cases[k])
        return replace(self.cases[k], judged=case.judged) if case.by_person else case


def our_gate(
    tenant: Tenant,
    *,
    reviews: int | None = None,
    lean: float | None = None,
    judge: Judge | None = None,
    askings: int = 1,
) -> History:
    """Search when enough evidence has come, and test the finalist until it is promoted or rejected.

    Right answers are known beforehand, or come from so many `reviews` a night, or from an LLM judge with a `lean`
    alone. A `judge` spares people reviews. With more `askings`, a look that does not promote is repeated at the same
    charge.
    """
    verdict, window, evidence, charges, used = "", 0, 0, 0, 0
    test: Test | None = None
    for night in range(1, tenant.scenario.nights + 1):
        tenant.night()
        evidence += TRACES
        if test and verdict == Verdict.AWAITING_REVIEWS:
            test.review()
            verdict = test.look()
        elif evidence < evidence_required(MIN_SAMPLES, window, verdict) or len(tenant.label) < MIN_HOLDOUT:
            continue
        else:
            if verdict != Verdict.INCONCLUSIVE:
                test, finalist = None, tenant.search(night)
                if finalist:
                    charges += 1
                    test = Test(tenant, finalist, alpha_of_charge(charges), reviews, lean, judge)
            verdict = Verdict.INCONCLUSIVE if test else Verdict.REJECTED
            if test and test.draw():
                for _ in range(askings):
                    test.ask()
                    if (verdict := test.look()) == Verdict.PROMOTED:
                        break
        window, evidence = TRACES * min(night, LOOKBACK), 0
        if test and verdict == Verdict.PROMOTED:
            return night, used + test.reviews_to_proof()
        used += len(test.tonight) if test else 0
    return None, used


def look_once(tenant: Tenant, promotes: Callable[[Sequence[float], int], bool], *, waits: bool = False) -> History:
    """One look at each finalist's differences on the holdout: every night, or when enough evidence has come."""
    verdict, window, evidence, finalists = "", 0, 0, 0
    for night in range(1, tenant.scenario.nights + 1):
        tenant.night()
        evidence += TRACES + tenant.may_judge
        enough = not waits or evidence >= evidence_required(MIN_SAMPLES, window, verdict)
        if enough and len(tenant.label) >= MIN_HOLDOUT:
            verdict, window, evidence = Verdict.REJECTED, TRACES * min(night, LOOKBACK), 0
            if finalist := tenant.search(night):
                finalists += 1
                at = np.arange(len(tenant.label))[-MAX_BATCH:]
                if promotes([case.difference for case in tenant.ask(at, tenant.answers(at, finalist))], finalists):
                    return night, night * tenant.may_judge
    return None, tenant.scenario.nights * tenant.may_judge


def exact_test(differences: Sequence[float], finalists: int) -> bool:
    return fmean(differences) >= MIN_GAIN and sign_flip_p(differences) <= alpha_of_charge(finalists)


RULES: dict[str, Rule] = {
    "our gate": our_gate,
    "p <= 0.05 every night": partial(look_once, promotes=lambda differences, _: sign_flip_p(differences) <= 0.05),
    "higher score every night": partial(look_once, promotes=lambda differences, _: sum(differences) > 0),
}
LOOK_REPEATED: dict[str, Rule] = {"our gate, each look repeated 5 times": partial(our_gate, askings=5)}
BEFOREHAND: Rule = partial(look_once, promotes=exact_test, waits=True)


@dataclass(frozen=True)
class Outcome:
    """Shares of histories by their first promotion: of a candidate that was no better, or of one that was.

    `mean_night` counts from when candidates are better. `to_promotion` is the median of the reviews until a promotion,
    and `reviews` the mean of all histories.
    """

    falsely: float
    rightly: float
    mean_night: float | None
    to_promotion: float | None
    reviews: float


def play(rule: Rule, scenario: Scenario, *, histories: int, seed: int, may_judge: int) -> Outcome:
    """Many histories of one scenario; the same arguments give the same outcome."""
    name = zlib.crc32(f"{scenario.name} {scenario.score}".encode())
    with patch.object(gate, "run_test", quick_test):
        played = [rule(Tenant(scenario, [seed, name, number], may_judge)) for number in range(histories)]
    promoted = [(night, reviews) for night, reviews in played if night is not None]
    right = [night - scenario.equal_nights for night, _ in promoted if scenario.gain > 0]
    right = [night for night in right if night > 0]
    return Outcome(
        falsely=(len(promoted) - len(right)) / histories,
        rightly=len(right) / histories,
        mean_night=fmean(right) if right else None,
        to_promotion=median(reviews for _, reviews in promoted) if promoted else None,
        reviews=fmean(reviews for _, reviews in played),
    )


def spending(power: float) -> dict[str, Any]:
    """The settings of `sequential_test` that spend alpha times this power of the part that is done."""
    return {"math": SimpleNamespace(gcd=math.gcd, comb=math.comb, sqrt=lambda done: done**power)}


NEVER_HOPELESS = {"MIN_DECIDED": sequential_test.BATCHES * MAX_BATCH + 1}
DESIGNS: dict[str, dict[str, Any]] = {
    "alpha t^0.33": spending(0.33),
    "alpha t^0.5 (ours)": spending(0.5),
    "alpha t^1": spending(1.0),
    "ours, hopeless below 60 % of wins": {"HOPED_WINS": 0.60},
    "ours, hopeless below 70 % of wins": {"HOPED_WINS": 0.70},
    "ours, never hopeless": NEVER_HOPELESS,
    "e-process": spending(0.5),
    "one look at 300": NEVER_HOPELESS,
}


def run_design(design: str, scenario: Scenario, rng: np.random.Generator) -> tuple[bool, int]:
    """Test one finalist with all reviews. Return whether it is proven, and after how many of them that is decided."""
    breaks = rng.uniform(*BREAKS)
    shares = [breaks + scenario.gain, scenario.ties, breaks]
    alpha, used = alpha_of_charge(1), 0
    batches: list[Batch] = []
    for _ in range(sequential_test.BATCHES):
        counts = rng.multinomial(MAX_BATCH, [*shares, 1 - sum(shares)])[:3]
        cases = tuple((WON, TIE, LOST)[k] for k in rng.permutation(np.repeat(range(3), counts)))
        order = review_order(len(cases), MAX_BATCH - len(cases))
        after = [
            [*batches, Batch(cases[:n], len(cases), 0, (), (TIE,) * (MAX_BATCH - len(cases)))]
            for n in range(len(cases) + 1)
        ]
        if design == "one look at 300":
            return sign_flip_p(differences(after[-1])) <= alpha, len(order)
        if design == "e-process":
            proof = next((n for n, seen in enumerate(after) if log_e_value(differences(seen)) >= -math.log(alpha)), 0)
        else:
            ends = quick_test(after[-1], alpha).proven
            proof = bisect_left(after, True, key=lambda seen: quick_test(seen, alpha).proven) if ends else 0
        for n, place in enumerate((place for place, alike in enumerate(order, 1) if not alike), 1):
            if n == proof or sequential_test.is_hopeless(after[n]):
                return n == proof, used + place
        batches, used = after[-1], used + len(order)
        if sum(differences(batches)) < MIN_GAIN * MAX_BATCH * len(batches):
            break
    return False, used


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def print_row(*cells: object) -> None:
    print(f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |", flush=True)


def print_head(texts: int, *head: str) -> None:
    print()
    print_row(*head)
    print(f"|{'---|' * texts}{'--:|' * (len(head) - texts)}")


def print_reviewed(histories: int, seed: int, reviewed: int) -> None:
    for scenarios, rules in ((SCENARIOS, RULES), (UNSTEADY, RULES), (UNSTEADY[:4:2], LOOK_REPEATED)):
        print_head(2, "candidates", "rule", "promoted falsely", "promoted rightly", "in night, on average")
        for scenario in scenarios:
            for name, rule in rules.items():
                found = play(rule, scenario, histories=histories, seed=seed, may_judge=reviewed)
                falsely = None if scenario.gain > 0 and not scenario.equal_nights else percent(found.falsely)
                rightly = percent(found.rightly) if scenario.gain > 0 else None
                print_row(scenario.name, name, falsely, rightly, found.mean_night and f"{found.mean_night:.1f}")


COSTS = "reviews until then, median", "reviews in all, mean", "in night, on average"


def print_unreviewed(histories: int, seed: int) -> None:
    print_head(3, "candidates", "incumbent right", "rule", "reviews a night", "promoted", *COSTS)
    for scenario in UNREVIEWED:
        for most in (10, 25):
            ours = partial(our_gate, reviews=most)
            for name, rule, may_judge in (("our gate", ours, TRACES), ("reviewed beforehand", BEFOREHAND, most)):
                found = play(rule, scenario, histories=histories, seed=seed, may_judge=may_judge)
                until = None if found.to_promotion is None else f"{found.to_promotion:.0f}"
                cells = percent(found.falsely + found.rightly), until, f"{found.reviews:.0f}"
                night = found.mean_night and f"{found.mean_night:.1f}"
                print_row(scenario.name, f"{100 * scenario.score:.0f} %", name, most, *cells, night)
    print_head(2, "candidates", "incumbent right", *(f"judge leans {lean} points" for lean in (0, 10, 20)))
    for scenario in (scenario for scenario in UNREVIEWED if scenario.gain == 0):
        rules = [partial(our_gate, lean=lean) for lean in (0.0, 0.1, 0.2)]
        found = [play(rule, scenario, histories=histories, seed=seed, may_judge=TRACES) for rule in rules]
        print_row(scenario.name, f"{100 * scenario.score:.0f} %", *(percent(outcome.falsely) for outcome in found))


def print_judged(histories: int, seed: int) -> None:
    print_head(2, "candidates", "judge", "promoted", *COSTS)
    for scenario in JUDGED:
        for judge in (None, Judge(0.85), Judge(0.9), Judge(0.95), Judge(0.95, 0.1), Judge(0.85, 0.2)):
            rule = partial(our_gate, reviews=10, judge=judge)
            found = play(rule, scenario, histories=histories, seed=seed, may_judge=TRACES)
            until = None if found.to_promotion is None else f"{found.to_promotion:.0f}"
            night = found.mean_night and f"{found.mean_night:.1f}"
            cells = percent(found.falsely + found.rightly), until, f"{found.reviews:.0f}", night
            print_row(scenario.name, judge or "none", *cells)


def print_designs(histories: int, seed: int) -> None:
    scenarios = [Scenario("equal", 0.0), Scenario("+8", 0.08), Scenario("+30", 0.30, score=0.55)]
    print_head(1, "design", *(f"{s.name}: {what}" for s in scenarios for what in ("proven", "reviews, median")))
    for design, settings in DESIGNS.items():
        cells: list[str] = []
        with patch.multiple(sequential_test, **settings):
            for scenario in scenarios:
                tests = [run_design(design, scenario, np.random.default_rng([seed, k])) for k in range(histories)]
                cells += [percent(fmean(proven for proven, _ in tests)), f"{median(used for _, used in tests):.0f}"]
        print_row(design, *cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=1000, help="for each line of a table")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reviewed", type=int, default=100, help="traces a night that are reviewed beforehand")
    args = parser.parse_args()
    print_reviewed(args.histories, args.seed, args.reviewed)
    print_unreviewed(args.histories, args.seed)
    print_judged(args.histories, args.seed)
    print_designs(args.histories, args.seed)


if __name__ == "__main__":
    main()
