"""The streams of one version, their levels and the falls that are found in them."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from autoopt_pipeline.evaluation.change_detector import Outcome
from autoopt_pipeline.evaluation.quality_monitor import (
    FALSE_ALARM_SHARES,
    SHOWN_DAYS,
    QualityMonitor,
    Stream,
    advance,
    with_replay,
)
from autoopt_pipeline.registry.replays import ModelReplay

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
NEW = QualityMonitor(version="v1", began=BEGIN, until=BEGIN)


def outcomes(quality: float, days: int, *, first_day: int = 0, per_day: int = 100, seed: int = 1) -> list[Outcome]:
    rng = random.Random(seed)
    return [
        Outcome(BEGIN + timedelta(days=first_day + i / per_day), float(rng.random() < quality))
        for i in range(days * per_day)
    ]


def after(state: QualityMonitor, found: Mapping[Stream, list[Outcome]], day: int) -> QualityMonitor:
    return advance(state, found, until=BEGIN + timedelta(days=day), false_alarm_days=365)[0]


def test_all_streams_together_give_no_more_false_alarms_than_stated() -> None:
    assert sum(FALSE_ALARM_SHARES.values()) == pytest.approx(1)
    assert FALSE_ALARM_SHARES.keys() == set(Stream)


@pytest.mark.parametrize(
    ("stream", "cause"),
    [
        (Stream.SCORE, "unknown: the model or the traffic"),
        (Stream.FAILURES, "failures"),
        (Stream.CONFIDENCE, "unknown: the model or the traffic"),
    ],
)
def test_a_fall_in_any_stream_is_found_and_kept(stream: Stream, cause: str) -> None:
    steady, until = after(NEW, {stream: outcomes(0.95, 20)}, 20), BEGIN + timedelta(days=24)
    worse = {stream: outcomes(0.7, 4, first_day=20)}
    state, fall = advance(steady, worse, until=until, false_alarm_days=365)
    assert fall
    assert (fall.what, fall.cause, fall.at) == (stream.value, cause, until)
    assert abs(fall.since - (BEGIN + timedelta(days=20))) < timedelta(days=1)
    assert after(state, {stream: outcomes(0.7, 4, first_day=24)}, 28).fall == fall


def test_what_arrives_out_of_order_counts_in_the_order_in_which_it_became_known() -> None:
    found = outcomes(0.8, 5)
    shuffled = random.Random(2).sample(found, len(found))
    assert after(NEW, {Stream.SCORE: shuffled}, 5) == after(NEW, {Stream.SCORE: found}, 5)


def test_the_level_is_that_of_the_last_days_with_outcomes() -> None:
    assert NEW.level is None
    state = after(NEW, {Stream.SCORE: outcomes(0.9, 10)}, 10)
    state = after(state, {Stream.SCORE: outcomes(0.5, SHOWN_DAYS, first_day=100, per_day=20)}, 110)
    assert len(state.days) == SHOWN_DAYS
    assert state.level
    mean, low, high = state.level
    assert low < mean < high
    assert mean == pytest.approx(0.5, abs=0.1)
    only_right = after(NEW, {Stream.SCORE: outcomes(1.0, 1)}, 1).level
    assert only_right
    assert only_right[::2] == pytest.approx((1, 1))
    assert only_right[1] == pytest.approx(0.963, abs=0.001)  # Wilson's interval for 100 of 100


def test_the_state_survives_being_stored_and_a_foreign_one_is_refused() -> None:
    state = after(NEW, {stream: outcomes(0.8, 6) for stream in Stream}, 6)
    assert QualityMonitor.model_validate_json(state.model_dump_json()) == state
    with pytest.raises(ValidationError):
        QualityMonitor.model_validate({**state.model_dump(), "streams": {"speed": {}}})


def test_replays_are_kept_and_tell_a_fall_its_cause_whether_it_is_found_before_or_after() -> None:
    changed = ModelReplay(
        tenant_id="acme",
        module="routing",
        version="v1",
        at=BEGIN + timedelta(days=21),
        answered_at=BEGIN,
        same_at=BEGIN + timedelta(days=19),
        lm="m",
        lm_before="m",
        asked=24,
        changed=8,
        repeated=6,
        returned=0,
        p=0.001,
    )
    later = changed.model_copy(update={"changed": 0, "repeated": 0, "p": 1.0, "at": BEGIN + timedelta(days=23)})
    steady, until = after(NEW, {Stream.SCORE: outcomes(0.95, 20)}, 20), BEGIN + timedelta(days=24)
    assert with_replay(steady, changed).fall is None
    worse = {Stream.SCORE: outcomes(0.7, 4, first_day=20)}
    asked_before = with_replay(with_replay(steady, changed), later)
    assert (asked_before.replay, asked_before.changed) == (later, changed)
    _, found = advance(asked_before, worse, until=until, false_alarm_days=365)
    assert found
    assert (found.cause, found.detail) == ("the language model", str(changed))
    assert with_replay(after(steady, worse, 24), changed).fall == found
