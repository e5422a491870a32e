"""Has the quality of what serves fallen? A detector that goes on for ever, with a stated rate of false alarms. Pure.

It is a Shiryaev-Roberts e-detector (Shin, Ramdas & Rinaldo, "E-detectors: a nonparametric framework for sequential
change detection", 2022). Every day a gambler enters with a stake of 1 and bets on each outcome that it is below the
reference: 1 + bet * (reference - outcome), as in `log_e_value`. Where quality has not fallen nobody's wealth grows on
average. So the wealth of all gamblers is on average no more than the days on which one has entered, and the mean time
until it reaches a threshold is at least the threshold, in days: one that is checked after each outcome, and however
many of them a day brings. A day without outcomes brings no gambler. Gamblers bet for falls of several sizes, and the
mean of their wealth counts, which is a wager like any other.

The reference is the mean of all earlier outcomes of the same version, those that were just bet on included. So it is
not known, and each bet is on a recursive residual (Brown, Durbin & Evans, JRSS B 1975): the outcome minus the mean of
all before. For normally distributed outcomes these residuals are independent of each other and of the unknown level,
so the bets are fair at any level, as if it were known (Pérez-Ortiz, Lardy, de Heide & Grünwald, "E-statistics, group
invariance and anytime-valid testing", Ann Statist 2024). A reference that is too high at first, after which a frozen
one would give alarm for ever, is corrected by the outcomes that follow. For right and wrong answers this is an
approximation that gets better with the number of outcomes. So bets begin after `LEARN` of them, and the rate is
measured by simulation (bench/README.md). The tolerance is 0: whatever fall can be proven is one.

Quality may also vary from day to day without a fall, as traffic does at weekends. `spread` is how much the means of
past days vary, as a multiple of what chance alone does (the dispersion of quasi-likelihood, Wedderburn, Biometrika
1974), at least 1. A day counts once the run of losses that it may belong to is over. Bets get smaller by the spread,
and pay for it: a gain is multiplied by exp(-bet² * variance * (spread - 1) / 2), which only makes alarms rarer where
days do not differ.

Sources of outcomes (people, judges, the request's own success) differ in level, and their shares may change. So each
has a reference of its own, and all bets make one wealth.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, model_validator

# Falls for which gamblers bet. A fall between two of them is found nearly as soon.
FALLS = (0.03, 0.06, 0.1, 0.18, 0.3)

# Outcomes of a source before anybody bets on it.
LEARN = 200

# Groups of outcomes that are counted on their own; more are counted together as `OTHER_GROUPS`.
MAX_GROUPS = 50

OTHER_GROUPS = "(others)"

# A bet never stakes more than this share of the wealth, so that one outcome cannot end it.
_MOST_STAKED = 0.9

# Wealth that one gambler must have gained since the fall for an alarm. It is nearly always reached long before, and
# keeps many gamblers who neither win nor lose from giving alarm by their number.
_LEAST_GAIN = 20.0

# Of the moments since which gamblers own this much less than the most or more, the first is taken for the beginning of
# the fall. The one with the most is often a streak of bad luck within it, which exaggerates the fall.
_LIKELY = 3.0

# Days as steady as chance allows that are assumed beforehand, and the most that one day counts beyond its expectation.
_STEADY_DAYS, _MOST_OF_A_DAY = 10, 4.0

# Least variance that is assumed. Where hardly anything goes wrong, one failure would else be an alarm.
_LEAST_VARIANCE = 0.02


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Level(_Stored):
    """How many outcomes there were, and the sums of their scores (0 to 1) and of the squares of these."""

    count: NonNegativeInt = 0
    total: NonNegativeFloat = 0.0
    squares: NonNegativeFloat = 0.0

    @property
    def mean(self) -> float:
        """Raises ZeroDivisionError without outcomes."""
        return self.total / self.count


Tallies = Mapping[str, Mapping[str, Level]]
"""Levels by source, and there by group."""


def count_of(tallies: Tallies) -> int:
    return sum(level.count for groups in tallies.values() for level in groups.values())


@dataclass(frozen=True)
class Outcome:
    """A score from 0 to 1 that became known `at` a moment (UTC).

    `source` says how it became known, and `group` what it was about, such as the class of the request.
    """

    at: datetime
    score: float
    source: str = ""
    group: str = ""


class Run(_Stored):
    """What one gambler owns who bets since the likeliest moment of a fall of one size (CUSUM: Page, Biometrika 1954).

    `since` is that moment (UTC), None while it would be later than all outcomes, and `later` are the outcomes since.
    """

    wealth: NonNegativeFloat = 1.0
    since: AwareDatetime | None = None
    later: dict[str, dict[str, Level]] = Field({})


class ChangeDetector(_Stored):
    """The state after some outcomes. Its size does not depend on their number.

    `wealth` is what all gamblers own together, for each size of fall, `runs` has one of them each, and `outcomes` are
    all since the detector began. `day` is the last day (UTC) on which a gambler has entered. Its outcomes are below the
    reference by `gap` in all, and `variance` is what chance would make of that. `past_days` and `past_spread` are the
    number of days before, and the sum of their squared gaps, each divided by its variance. `open_days` and
    `open_spread` are the same of days that may belong to a fall, and count once they turn out not to.
    """

    wealth: tuple[NonNegativeFloat, ...] = Field((0.0,) * len(FALLS), min_length=len(FALLS), max_length=len(FALLS))
    runs: tuple[Run, ...] = Field((Run(),) * len(FALLS), min_length=len(FALLS), max_length=len(FALLS))
    outcomes: dict[str, dict[str, Level]] = Field({})
    day: date | None = None
    gap: float = 0.0
    variance: NonNegativeFloat = 0.0
    past_days: NonNegativeInt = 0
    past_spread: NonNegativeFloat = 0.0
    open_days: NonNegativeInt = 0
    open_spread: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _a_run_is_a_part_of_the_whole(self) -> Self:
        for run in self.runs:
            if (run.since is None) != (not count_of(run.later)):
                raise ValueError("a run has outcomes if, and only if, it has begun")
            for source, groups in run.later.items():
                own = self.outcomes.get(source, {})
                rest = count_of({source: own}) - count_of({source: groups})
                if rest <= 0 or any(own.get(group, Level()).count < level.count for group, level in groups.items()):
                    raise ValueError("a run has outcomes that the whole has not")
        return self


@dataclass(frozen=True)
class Fall:
    """An alarm: the level fell `since` a moment, and it was proven `at` another one (UTC).

    `before` is what the earlier level would have given with the later shares of the sources. `outcomes` is the number
    of later ones.
    """

    at: datetime
    since: datetime
    before: float
    after: float
    outcomes: int
    earlier: Tallies
    later: Tallies


def detect(
    detector: ChangeDetector, outcomes: Iterable[Outcome], *, false_alarm_days: float
) -> tuple[ChangeDetector, tuple[Fall, ...]]:
    """Continue with outcomes in the order in which they became known. Returns the new state and the alarms.

    While nothing changes, alarms are `false_alarm_days` apart on average, or more. After an alarm the detector starts
    again, and takes what came since the fall for its first outcomes.
    """
    work = _Work(detector)
    falls = [fall for outcome in outcomes if (fall := work.take(outcome, false_alarm_days))]
    return work.detector(), tuple(falls)


class _Work:
    """A detector's state while it takes outcomes, as plain lists: they come in thousands."""

    def __init__(self, detector: ChangeDetector) -> None:
        self.wealth = list(detector.wealth)
        self.runs = [_OpenRun(run.wealth, run.since, _opened(run.later)) for run in detector.runs]
        self.day, self.gap, self.variance = detector.day, detector.gap, detector.variance
        self.past_days, self.past_spread = detector.past_days, detector.past_spread
        self.open_days, self.open_spread = detector.open_days, detector.open_spread
        self.outcomes = _opened(detector.outcomes)
        self.levels = {source: _sum(groups.values()) for source, groups in self.outcomes.items()}

    def detector(self) -> ChangeDetector:
        return ChangeDetector(
            wealth=tuple(self.wealth),
            runs=tuple(Run(wealth=run.wealth, since=run.since, later=_closed(run.later)) for run in self.runs),
            outcomes=_closed(self.outcomes),
            day=self.day,
            gap=self.gap,
            variance=self.variance,
            past_days=self.past_days,
            past_spread=self.past_spread,
            open_days=self.open_days,
            open_spread=self.open_spread,
        )

    def take(self, outcome: Outcome, threshold: float) -> Fall | None:
        level = self.levels.setdefault(outcome.source, [0, 0.0, 0.0])
        groups = self.outcomes.setdefault(outcome.source, {})
        group = outcome.group if outcome.group in groups or len(groups) < MAX_GROUPS else OTHER_GROUPS
        known = level[0] >= LEARN
        if known:
            self._bet(level, outcome, group)
        _add(groups.setdefault(group, [0, 0.0, 0.0]), outcome.score)
        _add(level, outcome.score)
        if not known or sum(self.wealth) < threshold * len(FALLS):
            return None
        most = max(run.wealth for run in self.runs)
        if most < _LEAST_GAIN:
            return None
        likely = [run for run in self.runs if run.wealth >= most / _LIKELY]
        return self._alarm(
            outcome.at,
            max(likely, key=lambda run: sum(own[0] for groups in run.later.values() for own in groups.values())),
        )

    @property
    def spread(self) -> float:
        return max(1.0, (_STEADY_DAYS + self.past_spread) / (_STEADY_DAYS + self.past_days))

    def _bet(self, level: Sequence[float], outcome: Outcome, group: str) -> None:
        today = outcome.at.astimezone(UTC).date()
        if self.day is None or today > self.day:
            self._begin(today)
        count, total, squares = level
        # Half an outcome of either kind more, as after Jeffreys' prior.
        mean = (total + 0.5) / (count + 1)
        variance = max((squares + 0.5) / (count + 1) - mean**2, _LEAST_VARIANCE)
        most, gap, spread = _MOST_STAKED / (1 - mean), mean - outcome.score, self.spread
        self.gap += gap
        self.variance += variance
        for place, fall in enumerate(FALLS):
            bet = min(fall / (variance * spread), most)
            gain = (1 + bet * gap) * math.exp(-(bet**2) * variance * (spread - 1) / 2)
            self.wealth[place] *= gain
            self.runs[place].take(outcome, group, gain)

    def _begin(self, today: date) -> None:
        if self.variance:
            self.open_spread += min(self.gap**2 / self.variance, _MOST_OF_A_DAY * self.spread)
            self.open_days += 1
        if self.runs[0].since is None:
            self.past_days, self.past_spread = self.past_days + self.open_days, self.past_spread + self.open_spread
            self.open_days, self.open_spread = 0, 0.0
        self.day, self.gap, self.variance = today, 0.0, 0.0
        self.wealth = [own + 1.0 for own in self.wealth]

    def _alarm(self, at: datetime, run: "_OpenRun") -> Fall:
        after = _sum(own for groups in run.later.values() for own in groups.values())
        expected, earlier = 0.0, dict[str, dict[str, _Sums]]()
        for source, groups in run.later.items():
            earlier[source] = {
                group: [max(0.0, a - b) for a, b in zip(own, groups.get(group, [0, 0.0, 0.0]), strict=True)]
                for group, own in self.outcomes[source].items()
            }
            before = _sum(earlier[source].values())
            expected += _sum(groups.values())[0] * before[1] / before[0]
        fall = Fall(
            at=at,
            since=run.since or at,
            before=expected / after[0],
            after=after[1] / after[0],
            outcomes=int(after[0]),
            earlier=_closed(earlier),
            later=_closed(run.later),
        )
        self.outcomes = run.later
        self.levels = {source: _sum(groups.values()) for source, groups in self.outcomes.items()}
        self.wealth, self.runs = [0.0] * len(FALLS), [_OpenRun() for _ in FALLS]
        self.gap, self.variance = 0.0, 0.0
        self.open_days, self.open_spread = 0, 0.0
        return fall


@dataclass
class _OpenRun:
    wealth: float = 1.0
    since: datetime | None = None
    later: "dict[str, dict[str, _Sums]]" = field(default_factory=dict)

    def take(self, outcome: Outcome, group: str, gain: float) -> None:
        self.wealth *= gain
        if self.wealth <= 1:
            # Whoever has lost by now had better begin anew: there was no fall yet.
            self.wealth = 1.0
            if self.since:
                self.since, self.later = None, {}
            return
        self.since = self.since or outcome.at
        _add(self.later.setdefault(outcome.source, {}).setdefault(group, [0, 0.0, 0.0]), outcome.score)


_Sums = list[float]
"""Count, total and squares of a `Level`."""


def _opened(tallies: Tallies) -> dict[str, dict[str, _Sums]]:
    return {
        source: {group: [own.count, own.total, own.squares] for group, own in groups.items()}
        for source, groups in tallies.items()
    }


def _closed(tallies: Mapping[str, Mapping[str, _Sums]]) -> dict[str, dict[str, Level]]:
    return {
        source: {
            group: Level(count=int(count), total=total, squares=squares)
            for group, (count, total, squares) in groups.items()
        }
        for source, groups in tallies.items()
    }


def _add(own: _Sums, score: float) -> None:
    own[0] += 1
    own[1] += score
    own[2] += score**2


def _sum(parts: Iterable[Sequence[float]]) -> _Sums:
    sums = [0, 0.0, 0.0]
    for own in parts:
        sums = [a + b for a, b in zip(sums, own, strict=True)]
    return sums
