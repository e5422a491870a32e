"""The monitor of what one version of a module does in production: its streams of outcomes, and its last fall. Pure."""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeInt

from autoopt_pipeline.evaluation.change_detector import ChangeDetector, Fall, Outcome, detect
from autoopt_pipeline.evaluation.fall_cause import Cause, cause_of, completed
from autoopt_pipeline.evaluation.model_change import has_changed
from autoopt_pipeline.evaluation.statistics import score_interval
from autoopt_pipeline.registry.quality_records import QualityFall
from autoopt_pipeline.registry.replays import ModelReplay

# Days with outcomes over which the level that people see is averaged.
SHOWN_DAYS = 7


class Stream(StrEnum):
    """What is monitored of a version, from 0 to 1: scores, the share of decisions without an error, confidence."""

    SCORE = "quality"
    FAILURES = "success"
    CONFIDENCE = "confidence"


FALSE_ALARM_SHARES = {Stream.SCORE: 0.6, Stream.FAILURES: 0.2, Stream.CONFIDENCE: 0.2}
"""The part of all false alarms that each stream may give. Together they are 1, so all streams of a module give no more
than the stated rate."""


class Day(BaseModel):
    """The scores that became known on one day (UTC)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    day: date
    count: NonNegativeInt
    total: float = Field(ge=0, allow_inf_nan=False)


class QualityMonitor(BaseModel):
    """The state of the monitor of one version (None: the baseline), which has seen all that was known at `until` (UTC).

    Decisions since `began` count. `days` has the last days with scores, oldest first. `replay` is the last time that
    its language model was asked again what it was asked before, and `changed` the last one that found another model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str | None
    began: AwareDatetime
    until: AwareDatetime
    streams: dict[Stream, ChangeDetector] = Field({})
    days: tuple[Day, ...] = Field((), max_length=SHOWN_DAYS)
    fall: QualityFall | None = None
    replay: ModelReplay | None = None
    changed: ModelReplay | None = None

    @property
    def level(self) -> tuple[float, float, float] | None:
        """The mean score of the last days, and its interval at 95 % (Wilson 1927). None without scores."""
        count = sum(day.count for day in self.days)
        if not count:
            return None
        mean = sum(day.total for day in self.days) / count
        interval = score_interval(mean, count)
        return mean, interval.low, interval.high


def advance(
    state: QualityMonitor, found: Mapping[Stream, Iterable[Outcome]], *, until: datetime, false_alarm_days: float
) -> tuple[QualityMonitor, QualityFall | None]:
    """Continue with what became known before `until` (UTC). Returns the new state, and the fall that was found, if any.

    Of several falls the last one in the most telling stream counts.
    """
    streams, new = dict(state.streams), None
    for stream in Stream:
        outcomes = sorted(found.get(stream, ()), key=lambda outcome: outcome.at)
        streams[stream], falls = detect(
            streams.get(stream, ChangeDetector()),
            outcomes,
            false_alarm_days=false_alarm_days / FALSE_ALARM_SHARES[stream],
        )
        if falls and new is None:
            new = _completed(state, _found(stream, falls[-1], until))
    days = _days(state.days, found.get(Stream.SCORE, ()))
    fall = new or state.fall
    return state.model_copy(update={"until": until, "streams": streams, "days": days, "fall": fall}), new


def with_replay(state: QualityMonitor, replay: ModelReplay) -> QualityMonitor:
    """Take a replay of the version's model, which may tell the cause of the last fall."""
    changed = replay if has_changed(replay) else state.changed
    state = state.model_copy(update={"replay": replay, "changed": changed})
    return state.model_copy(update={"fall": _completed(state, state.fall)}) if state.fall else state


def _completed(state: QualityMonitor, fall: QualityFall) -> QualityFall:
    by_scores = fall.what == Stream.SCORE
    return completed(fall, newest=state.replay, changed=state.changed, told_by_scores=by_scores)


def _found(stream: Stream, fall: Fall, until: datetime) -> QualityFall:
    kind, group = cause_of(fall) if stream is Stream.SCORE else (_CAUSES[stream], "")
    return QualityFall(
        what=stream.value,
        at=until,
        since=fall.since,
        before=fall.before,
        after=fall.after,
        outcomes=fall.outcomes,
        cause=kind.value,
        group=group,
    )


_CAUSES = {Stream.FAILURES: Cause.FAILURES, Stream.CONFIDENCE: Cause.UNKNOWN}


def _days(known: Iterable[Day], scores: Iterable[Outcome]) -> tuple[Day, ...]:
    days = {day.day: (day.count, day.total) for day in known}
    for outcome in scores:
        day = outcome.at.astimezone(UTC).date()
        count, total = days.get(day, (0, 0.0))
        days[day] = count + 1, total + outcome.score
    last = sorted(days.items())[-SHOWN_DAYS:]
    return tuple(Day(day=day, count=count, total=total) for day, (count, total) in last)
