"""Does the monitor of live quality find a fall soon, and give alarm for nothing as seldom as it says?

    python bench/live_quality.py --years 100 --falls 100 --seed 1

prints false alarms per tenant-year, the outcomes until a fall is found beside two simpler detectors that are tuned to
as many false alarms, and how often the cause is named right. All through the functions used in production.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise, product
from statistics import fmean, median

import numpy as np

from autoopt_pipeline.evaluation.change_detector import ChangeDetector, Fall, Outcome, detect
from autoopt_pipeline.evaluation.fall_cause import FAILED, Cause
from autoopt_pipeline.evaluation.model_change import p_value
from autoopt_pipeline.evaluation.quality_monitor import (
    FALSE_ALARM_SHARES,
    QualityMonitor,
    Stream,
    advance,
    with_replay,
)
from autoopt_pipeline.optimization.model_replay import ASKED_ONCE
from autoopt_pipeline.registry.replays import ModelReplay

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 365
PER_DAY, QUALITIES, LOSSES = (20, 100, 500), (0.7, 0.8, 0.9), (0.10, 0.05)
LEARNT = (1000, 3000, 10_000)
MOST_AFTER = 6000
WINDOW = 300
PH_DRIFT = 0.005
SUCCEEDS = 0.98


@dataclass(frozen=True)
class Traffic:
    """Outcomes a day and their quality (0 to 1), which may vary from day to day by a standard deviation."""

    per_day: int
    quality: float
    varies: float = 0.0


def checked(
    stream: Stream, days: Iterable[Sequence[tuple[float, str]]], per_day: int
) -> Iterator[tuple[int, Sequence[Fall]]]:
    """Let the detector take scores with their groups day by day, as the sensor checks: each day with its alarms."""
    detector = ChangeDetector()
    for day, scores in enumerate(days):
        outcomes = [
            Outcome(BEGIN + timedelta(days=day + place / per_day), score, group=group)
            for place, (score, group) in enumerate(scores)
        ]
        detector, falls = detect(detector, outcomes, false_alarm_days=DAYS / FALSE_ALARM_SHARES[stream])
        yield day, falls


def split_into_days(scores: np.ndarray, per_day: int) -> Iterator[Sequence[tuple[float, str]]]:
    for first in range(0, len(scores) - per_day + 1, per_day):
        yield [(score, "") for score in scores[first : first + per_day].astype(float).tolist()]


def false_alarms(stream: Stream, traffic: Traffic, seed: int) -> int:
    """The alarms of a stream in one tenant-year in which nothing changes."""
    rng = np.random.default_rng(seed)
    size = (DAYS, traffic.per_day)
    if stream is Stream.CONFIDENCE:
        scores = rng.beta(8, 2, size)
    else:
        quality = np.clip(rng.normal(traffic.quality, traffic.varies, (DAYS, 1)), 0, 1)
        scores = rng.random(size) < quality
    days = split_into_days(scores.ravel(), traffic.per_day)
    return sum(len(falls) for _, falls in checked(stream, days, traffic.per_day))


def fall_sequence(rng: np.random.Generator, traffic: Traffic, loss: float, learnt: int) -> tuple[np.ndarray, int]:
    """Outcomes of whole days: at least `learnt` of them, and from the place that is returned on with the loss."""
    change = -(-learnt // traffic.per_day) * traffic.per_day
    quality = np.repeat([traffic.quality, traffic.quality - loss], [change, MOST_AFTER])
    return rng.random(len(quality)) < quality, change


def found_after(traffic: Traffic, loss: float, learnt: int, seed: int) -> int | None:
    """Outcomes from the fall to its alarm; None for a false alarm before, `MOST_AFTER` where it is not found."""
    scores, change = fall_sequence(np.random.default_rng(seed), traffic, loss, learnt)
    for day, falls in checked(Stream.SCORE, split_into_days(scores, traffic.per_day), traffic.per_day):
        if falls:
            at = day * traffic.per_day + round((falls[0].at - BEGIN) / timedelta(days=1) % 1 * traffic.per_day)
            return at + 1 - change if at >= change else None
    return MOST_AFTER


def window_statistic(scores: np.ndarray) -> np.ndarray:
    """z of the last `WINDOW` outcomes against all before them, after every outcome; rows are tenants."""
    sums = np.concatenate([np.zeros((len(scores), 1)), np.cumsum(scores, axis=1)], axis=1)
    places = np.arange(2 * WINDOW, scores.shape[1] + 1)
    recent = (sums[:, places] - sums[:, places - WINDOW]) / WINDOW
    before = sums[:, places - WINDOW] / (places - WINDOW)
    mean = sums[:, places] / places
    error = np.sqrt(np.maximum(mean * (1 - mean), 1e-9) * (1 / WINDOW + 1 / (places - WINDOW)))
    return np.concatenate([np.zeros((len(scores), 2 * WINDOW - 1)), (before - recent) / error], axis=1)


def page_hinkley(scores: np.ndarray) -> np.ndarray:
    """Page (Biometrika 1954) and Hinkley (Biometrika 1971), after every outcome; rows are tenants."""
    count = np.arange(1, scores.shape[1] + 1)
    drifts = np.cumsum(np.cumsum(scores, axis=1) / count - scores - PH_DRIFT, axis=1)
    return drifts - np.minimum(np.minimum.accumulate(drifts, axis=1), 0)


SIMPLE = {f"z-test of the last {WINDOW}": window_statistic, "Page-Hinkley": page_hinkley}


def tuned(
    statistic: Callable[[np.ndarray], np.ndarray], traffic: Traffic, quiet: float, years: int, seed: int
) -> float:
    """The threshold that a share `quiet` of tenant-years without a change stays below."""
    rng = np.random.default_rng([seed, 7])
    most: list[float] = []
    for _ in range(years):
        scores = (rng.random((1, DAYS * traffic.per_day)) < traffic.quality).astype(float)
        most.append(float(statistic(scores).max()))
    return float(np.quantile(most, quiet))


def found_by_simple(
    statistic: Callable[[np.ndarray], np.ndarray],
    limit: float,
    scores: np.ndarray,
    change: int,
) -> int | None:
    over = np.flatnonzero(statistic(scores[None, :].astype(float))[0] > limit)
    if not len(over):
        return MOST_AFTER
    return int(over[0]) + 1 - change if over[0] >= change else None


def middle(found: Iterable[int | None]) -> str:
    known = [after for after in found if after is not None]
    value = median(known) if known else MOST_AFTER
    return f"{value:,.0f}" if value < MOST_AFTER else f"> {MOST_AFTER:,}"


CLASSES = ("search", "reports", "billing", "refunds")
SHARES, SCORES = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.95, 0.85, 0.8, 0.6])


def caused(rng: np.random.Generator, cause: str, count: int) -> list[tuple[str, float]]:
    """Groups and scores of outcomes. Every cause costs 10 to 11 points, but one class alone 9."""
    shares = SHARES[::-1] if cause == "traffic" else SHARES
    scores = SCORES - 0.10 if cause in CHANGED or cause == "harder requests" else SCORES.copy()
    if cause == "one class":
        scores[2] -= 0.45
    picked = rng.choice(len(CLASSES), count, p=shares)
    right = rng.random(count) < scores[picked]
    failed = rng.random(count) < (0.12 if cause == "failures" else 0.005)
    return [
        (FAILED, 0.0) if lost else (CLASSES[group], float(good))
        for group, good, lost in zip(picked, right, failed, strict=True)
    ]


EXPECTED = {
    "traffic": Cause.TRAFFIC,
    "one class": Cause.ONE_CLASS,
    "failures": Cause.FAILURES,
    "harder requests": Cause.WITHIN_CLASSES,
    "model, 15 % of answers": Cause.MODEL,
    "model, 25 % of answers": Cause.MODEL,
}
CHANGED = {"model, 15 % of answers": 0.15, "model, 25 % of answers": 0.25}
"""The share of answers that another model changes, for those that it makes right as well as wrong."""

CALLS, NOISES = (30, 60), (0.0, 0.02, 0.1)


def fallen(cause: str, per_day: int, seed: int) -> QualityMonitor | None:
    """The monitor on the day on which it finds the fall; None where it finds none, or one before it."""
    rng = np.random.default_rng([seed, 3])
    change = -(-LEARNT[1] // per_day) * per_day
    cases = caused(rng, "nothing", change) + caused(rng, cause, MOST_AFTER)
    state = QualityMonitor(version=None, began=BEGIN, until=BEGIN)
    for day, (first, last) in enumerate(pairwise(range(0, len(cases) + 1, per_day))):
        outcomes = [
            Outcome(BEGIN + timedelta(days=day + place / per_day), score, group=group)
            for place, (group, score) in enumerate(cases[first:last])
        ]
        until = BEGIN + timedelta(days=day + 1)
        state, fall = advance(state, {Stream.SCORE: outcomes}, until=until, false_alarm_days=DAYS)
        if fall:
            return state if first >= change else None
    return None


def asked_again(changed: float, calls: int, noise: float, at: datetime, rng: np.random.Generator) -> ModelReplay:
    """A model is asked again that changes a share of its answers, and gives another one by chance as often as `noise`.

    The numbers of requests are those of production.
    """
    asked = int(calls * ASKED_ONCE)
    usual = np.zeros((3, asked), dtype=int)
    usual[1:] = rng.random(asked) < changed
    varied = rng.random((3, asked)) < noise
    before, now, third = np.where(varied, rng.integers(2, 2 + len(CLASSES) - 2, (3, asked)), usual)
    doubted = np.flatnonzero(before != now)[: calls - asked]
    repeated, returned = int((third == now)[doubted].sum()), int((third == before)[doubted].sum())
    return ModelReplay(
        tenant_id="bench",
        module="routing",
        version=None,
        at=at,
        answered_at=BEGIN,
        same_at=BEGIN,
        lm="lm",
        lm_before="lm",
        asked=asked,
        changed=int((before != now).sum()),
        repeated=repeated,
        returned=returned,
        p=p_value(asked, repeated, returned),
    )


def named(state: QualityMonitor, cause: str, calls: int, noise: float, seed: int) -> str:
    """The cause of the fall, once the model was asked again."""
    rng = np.random.default_rng([seed, 5])
    state = with_replay(state, asked_again(CHANGED.get(cause, 0.0), calls, noise, state.until, rng))
    return state.fall.cause if state.fall else ""


def print_false_alarms(pool: ProcessPoolExecutor, steady: Sequence[Traffic], years: range) -> dict[Traffic, float]:
    """Returns the share of tenant-years without an alarm."""
    print(f"false alarms in a tenant-year; stated: 1 in {DAYS} days\n")
    print("| outcomes a day | quality | varies daily by | of quality | of success | of confidence | all |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    quiet: dict[Traffic, float] = {}
    varying = [Traffic(count, 0.8, varies) for count, varies in product(PER_DAY, (0.01, 0.02, 0.04))]
    others = {
        (stream, count): fmean(pool.map(partial(false_alarms, stream, Traffic(count, SUCCEEDS)), years))
        for stream, count in product((Stream.FAILURES, Stream.CONFIDENCE), PER_DAY)
    }
    for traffic in [*steady, *varying]:
        alarms = list(pool.map(partial(false_alarms, Stream.SCORE, traffic), years))
        quiet[traffic] = fmean(not found for found in alarms)
        success, confidence = (others[stream, traffic.per_day] for stream in (Stream.FAILURES, Stream.CONFIDENCE))
        print(
            f"| {traffic.per_day} | {100 * traffic.quality:.0f} % | {100 * traffic.varies:.0f} points "
            f"| {fmean(alarms):.2f} | {success:.2f} | {confidence:.2f} "
            f"| {fmean(alarms) + success + confidence:.2f} |",
            flush=True,
        )
    return quiet


def print_delays(
    pool: ProcessPoolExecutor,
    steady: Sequence[Traffic],
    quiet: dict[Traffic, float],
    falls: range,
    seed: int,
    years: int,
) -> None:
    print("\noutcomes from a fall to its alarm, median\n")
    print(f"| learnt | falls by | outcomes a day | quality | ours | {' | '.join(SIMPLE)} |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    limits = {
        (name, traffic): tuned(statistic, traffic, quiet[traffic], years, seed)
        for name, statistic in SIMPLE.items()
        for traffic in steady
    }
    for learnt, loss, traffic in product(LEARNT, LOSSES, steady):
        ours = list(pool.map(partial(found_after, traffic, loss, learnt), falls))
        sequences = [fall_sequence(np.random.default_rng(fall), traffic, loss, learnt) for fall in falls]
        simple = " | ".join(
            middle(found_by_simple(statistic, limits[name, traffic], scores, change) for scores, change in sequences)
            for name, statistic in SIMPLE.items()
        )
        print(
            f"| {learnt:,} | {100 * loss:.0f} points | {traffic.per_day} | {100 * traffic.quality:.0f} % "
            f"| {middle(ours)} | {simple} |",
            flush=True,
        )


def print_causes(pool: ProcessPoolExecutor, falls: range) -> None:
    """Each row has a cause; each pair of numbers is for one setting of `quality.replay_calls` and noise."""
    settings = list(product(CALLS, NOISES))
    print("\nthe cause is named right, and the model is named, of the falls that were found, in percent\n")
    shown = " | ".join(f"{calls} calls, {100 * noise:.0f} % noise" for calls, noise in settings)
    print(f"| cause | outcomes a day | found | {shown} |")
    print(f"|---|--:|--:|{'--:|' * len(settings)}")
    right: dict[tuple[int, float], list[float]] = {setting: [] for setting in settings}
    for cause, per_day in product(EXPECTED, PER_DAY):
        states = [state for state in pool.map(partial(fallen, cause, per_day), falls) if state]
        cells: list[str] = []
        for calls, noise in settings:
            answers = [named(state, cause, calls, noise, falls.start + place) for place, state in enumerate(states)]
            good = 100 * fmean(answer == EXPECTED[cause] for answer in answers)
            right[calls, noise].append(good)
            cells.append(f"{good:.0f}, {100 * fmean(answer == Cause.MODEL for answer in answers):.0f}")
        print(f"| {cause} | {per_day} | {len(states)} | {' | '.join(cells)} |", flush=True)
    means = " | ".join(f"{fmean(right[setting]):.0f}" for setting in settings)
    print(f"| all | | | {means} |")


TABLES = ("detector", "causes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=TABLES, default=TABLES, help="all by default")
    parser.add_argument("--years", type=int, default=100, help="tenant-years for each line")
    parser.add_argument("--falls", type=int, default=100, help="falls for each line")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    steady = [Traffic(count, quality) for count, quality in product(PER_DAY, QUALITIES)]
    with ProcessPoolExecutor(2) as pool:
        if "detector" in args.tables:
            quiet = print_false_alarms(pool, steady, range(1000 * args.seed, 1000 * args.seed + args.years))
            falls = range(2000 * args.seed, 2000 * args.seed + args.falls)
            print_delays(pool, steady, quiet, falls, args.seed, args.years)
        if "causes" in args.tables:
            print_causes(pool, range(3000 * args.seed, 3000 * args.seed + args.falls))


if __name__ == "__main__":
    main()
