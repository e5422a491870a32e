"""How reliable rollouts are: simulated fortnights of two versions side by side, decided by the product's own analysis.

    python bench/rollout.py --rollouts 400 --seed 1 --share 0.1
    python bench/rollout.py --proof --rollouts 300
    python bench/rollout.py --reviews --rollouts 200

prints how often the newer version is rolled back, and after how many outcomes, beside two simpler rules at the same
moments. With --proof, an unproven canary has the share, and must prove itself (`evidence: live`). With --reviews,
people review disagreements of the two versions as well. bench/README.md has the assumptions and the results.
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import sqrt
from statistics import NormalDist, fmean, median

from autoopt_pipeline.evaluation.alpha_ledger import alpha_of_charge
from autoopt_pipeline.modules.online_score import LiveOutcome
from autoopt_pipeline.optimization.rollout_comparison import ENOUGH_TO_REVIEW, MOST_PER_ROLLOUT, MOST_PER_RUN
from autoopt_pipeline.rollouts.analysis import AnalysisStatus, ReviewComparison, VersionSample, analyze_rollout

AT = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 14
LOOK_EVERY = 0.25
OLDER = 0.8

Rule = Callable[[VersionSample, VersionSample, timedelta], bool | None]
"""True to roll the newer version back, False to keep it, None to go on."""


@dataclass(frozen=True)
class Scenario:
    """`gain` of the newer version; `drift` is the change of both versions' accuracy in a fortnight."""

    name: str
    gain: float
    drift: float = 0.0


SCENARIOS = (
    Scenario("equal", 0.0),
    Scenario("equal, traffic grows harder by 30 points", 0.0, -0.3),
    Scenario("5 points worse", -0.05),
    Scenario("10 points worse", -0.10),
    Scenario("20 points worse", -0.20),
    Scenario("10 points better", 0.10),
)


def our_watch(newer: VersionSample, older: VersionSample, age: timedelta) -> bool | None:
    verdict = analyze_rollout(newer, older, age=age, longest=timedelta(days=DAYS)).status
    return None if verdict is AnalysisStatus.OPEN else verdict is AnalysisStatus.WORSE


def two_shares(newer: VersionSample, older: VersionSample, age: timedelta, alpha: float = 0.05) -> bool | None:
    """The test of two shares at `alpha`, at every look."""
    if min(len(newer.outcomes), len(older.outcomes)) < 30:
        return None
    scores = [[o.score for o in side.outcomes] for side in (newer, older)]
    pooled = fmean([*scores[0], *scores[1]])
    error = sqrt(pooled * (1 - pooled) * (1 / len(scores[0]) + 1 / len(scores[1])))
    z = (fmean(scores[1]) - fmean(scores[0])) / error if error else 0.0
    return True if 1 - NormalDist().cdf(z) <= alpha else None


def lower_score(newer: VersionSample, older: VersionSample, age: timedelta) -> bool | None:
    """Three points lower at any look, with 30 outcomes on each side."""
    if newer.score is None or older.score is None or min(len(newer.outcomes), len(older.outcomes)) < 30:
        return None
    return True if newer.score < older.score - 0.03 else None


RULES: dict[str, Rule] = {
    "our rollout": our_watch,
    "test of two shares at every look": two_shares,
    "3 points lower at any look": lower_score,
}


def production(
    rng: random.Random, scenario: Scenario, share: float, outcomes: int, *, older: float = OLDER
) -> tuple[VersionSample, VersionSample]:
    """A fortnight's outcomes, known a few hours after their decisions."""
    found: tuple[list[LiveOutcome], list[LiveOutcome]] = ([], [])
    for number in range(outcomes):
        is_older = rng.random() < share
        right = older + (0 if is_older else scenario.gain) + scenario.drift * number / outcomes
        decided_at = AT + timedelta(days=DAYS) * (number / outcomes)
        known_at = decided_at + timedelta(hours=rng.expovariate(1 / 3))
        found[is_older].append(LiveOutcome(known_at, decided_at, float(rng.random() < right)))
    return VersionSample(len(found[0]), tuple(found[0])), VersionSample(len(found[1]), tuple(found[1]))


def rolled_back_after(rule: Rule, newer: VersionSample, older: VersionSample) -> int | None:
    """How many outcomes were known when the newer version had to go, None where it stayed."""
    age = timedelta(minutes=1)
    while age <= timedelta(days=DAYS):
        known = [
            VersionSample(s.decisions, tuple(o for o in s.outcomes if o.known_at <= AT + age)) for s in (newer, older)
        ]
        goes = rule(known[0], known[1], age)
        if goes is not None:
            return sum(len(side.outcomes) for side in known) if goes else None
        age *= 1 + LOOK_EVERY
    return None


PROOFS = (
    Scenario("equal", 0.0),
    Scenario("equal, traffic grows harder by 20 points", 0.0, -0.2),
    Scenario("3 points worse", -0.03),
    Scenario("8 points better", 0.08),
    Scenario("15 points better", 0.15),
)
DAILY = (50, 500)


def proven_on(canary: VersionSample, others: VersionSample, alpha: float) -> int | None:
    """The day on which the canary becomes active, looked at daily. None where it does not."""
    for day in range(1, DAYS + 1):
        until = AT + timedelta(days=day)
        sides = [tuple(o for o in side.outcomes if o.known_at <= until) for side in (canary, others)]
        result = analyze_rollout(
            *(VersionSample(len(side), side) for side in sides),
            age=timedelta(days=day),
            longest=timedelta(days=DAYS),
            proving_alpha=alpha,
        )
        if result.status is not AnalysisStatus.OPEN:
            return day if result.status is AnalysisStatus.BETTER else None
    return None


def shares_differ_on(canary: VersionSample, others: VersionSample, alpha: float) -> int | None:
    """The same by a test of two shares at every look."""
    for day in range(1, DAYS + 1):
        until = AT + timedelta(days=day)
        known = [VersionSample(0, tuple(o for o in s.outcomes if o.known_at <= until)) for s in (canary, others)]
        if two_shares(known[1], known[0], timedelta(days=day), alpha):
            return day
    return None


def print_proofs(rollouts: int, seed: int, share: float) -> None:
    print("| candidate | outcomes a day | rule | becomes active | on day, median |")
    print("|---|--:|---|--:|--:|")
    alpha = alpha_of_charge(1)
    for scenario in PROOFS:
        for daily in DAILY:
            worlds = [
                production(random.Random(f"{seed}/{n}"), scenario, 1 - share, daily * DAYS, older=0.7)  # noqa: S311
                for n in range(rollouts)
            ]
            for name, rule in (("our rollout", proven_on), ("test of two shares at every look", shares_differ_on)):
                days = [day for canary, others in worlds if (day := rule(canary, others, alpha)) is not None]
                on = f"{median(days):.0f}" if days else ""
                print(f"| {scenario.name} | {daily} | {name} | {100 * len(days) / rollouts:.1f} % | {on} |", flush=True)


CHANGED, BOTH_WRONG = 0.04, 0.05
"""Share of requests that each version alone has right if they are equal, and on which both are wrong differently."""

KNOWN = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Served:
    """A request: which version served it, whether each of them is right, and whether they differ."""

    at: datetime
    by_older: bool
    older: bool
    newer: bool
    differs: bool
    is_known: bool


def served(rng: random.Random, gain: float, share: float, known: float, requests: int) -> list[Served]:
    """A fortnight's requests, of which a part has an outcome."""
    broken, fixed = CHANGED + max(0.0, -gain), CHANGED + max(0.0, gain)
    differs = broken + fixed + BOTH_WRONG
    found = []
    for number in range(requests):
        at, part = AT + timedelta(days=DAYS) * (number / requests), rng.random()
        alike_right = rng.random() < (OLDER - broken) / (1 - differs)
        older = part < broken or (part >= differs and alike_right)
        newer = broken <= part < broken + fixed or (part >= differs and alike_right)
        found.append(Served(at, rng.random() < share, older, newer, part < differs, rng.random() < known))
    return found


def rolled_back_on(requests: list[Served], rng: random.Random, reviews_a_night: int | None) -> tuple[int | None, int]:
    """The day on which the newer version goes, looked at daily, and the reviews until the end.

    Each night a run draws traces, unless enough wait, and people review disagreements. With None, none are drawn.
    """
    drawn: set[int] = set()
    queue: list[float] = []
    reviewed = 0
    for day in range(1, DAYS + 1):
        until = AT + timedelta(days=day)
        past = [number for number, request in enumerate(requests) if request.at < until]
        if reviews_a_night is not None and len(queue) - reviewed < ENOUGH_TO_REVIEW:
            new = [number for number in past if number not in drawn]
            batch = rng.sample(new, min(len(new), MOST_PER_RUN, MOST_PER_ROLLOUT - len(drawn)))
            drawn.update(batch)
            queue += [float(requests[n].newer) - requests[n].older for n in batch if requests[n].differs]
        reviewed = min(len(queue), reviewed + (reviews_a_night or 0))
        sides: tuple[list[LiveOutcome], list[LiveOutcome]] = ([], [])
        for request in (requests[number] for number in past if requests[number].is_known):
            right = request.older if request.by_older else request.newer
            sides[request.by_older].append(LiveOutcome(request.at, request.at, float(right)))
        status = analyze_rollout(
            *(VersionSample(len(side), tuple(side)) for side in sides),
            age=timedelta(days=day),
            longest=timedelta(days=DAYS),
            reviews=None if reviews_a_night is None else ReviewComparison(tuple(queue[:reviewed])),
        ).status
        if status is not AnalysisStatus.OPEN:
            return (day if status is AnalysisStatus.WORSE else None), reviewed
    return None, reviewed


def print_reviews(rollouts: int, seed: int, share: float, requests: int) -> None:
    print("| newer version | outcomes known | reviews a night | rolled back | on day, median | reviews, mean |")
    print("|---|--:|--:|--:|--:|--:|")
    for scenario in (Scenario("equal", 0.0), Scenario("5 points worse", -0.05), Scenario("10 points worse", -0.1)):
        for known in KNOWN:
            for nightly in (None, 0, 10):
                ends = []
                for n in range(rollouts):
                    rng = random.Random(f"{seed}/{n}")  # noqa: S311
                    world = served(rng, scenario.gain, share, known, requests)
                    ends.append(rolled_back_on(world, rng, nightly))
                days = [day for day, _ in ends if day is not None]
                on, given = f"{median(days):.0f}" if days else "", fmean(reviews for _, reviews in ends)
                nights = "not asked" if nightly is None else nightly
                back = f"{100 * len(days) / rollouts:.1f} %"
                print(f"| {scenario.name} | {100 * known:.0f} % | {nights} | {back} | {on} | {given:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.1, help="share of requests that the older version keeps")
    parser.add_argument("--outcomes", type=int, default=5000, help="known in a fortnight; with --reviews, requests")
    parser.add_argument("--proof", action="store_true", help="play proofs in production instead")
    parser.add_argument("--reviews", action="store_true", help="play rollouts with reviews of disagreements instead")
    given = parser.parse_args()
    if given.reviews:
        print_reviews(given.rollouts, given.seed, given.share, given.outcomes)
        return
    if given.proof:
        print_proofs(given.rollouts, given.seed, given.share)
        return
    print("| newer version | rule | rolled back | after outcomes, on average |")
    print("|---|---|--:|--:|")
    for scenario in SCENARIOS:
        worlds = [
            production(random.Random(f"{given.seed}/{n}"), scenario, given.share, given.outcomes)  # noqa: S311
            for n in range(given.rollouts)
        ]
        for name, rule in RULES.items():
            ends = [rolled_back_after(rule, newer, older) for newer, older in worlds]
            gone = [end for end in ends if end is not None]
            after = f"{fmean(gone):.0f}" if gone else ""
            print(f"| {scenario.name} | {name} | {100 * len(gone) / len(ends):.1f} % | {after} |")


if __name__ == "__main__":
    main()
