"""Jitter and quiet hours: plain values in, plain values out."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.scheduling.windows import quiet_until, spread
from autoopt_pipeline.tenants.config import WEEKDAYS, QuietHours, parse_config

HOUR = timedelta(hours=1)
MONDAY = datetime(2026, 1, 5, tzinfo=UTC)

clocks = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"])
hours = (
    st.tuples(clocks, clocks | st.just("24:00"), st.sets(st.sampled_from(WEEKDAYS), min_size=1), zones)
    .filter(lambda drawn: drawn[0] != drawn[1])
    .map(lambda drawn: QuietHours(start=drawn[0], end=drawn[1], weekdays=sorted(drawn[2]), time_zone=drawn[3]))
)
moments = st.integers(0, 366 * 24 * 60).map(lambda minutes: MONDAY + timedelta(minutes=minutes))


def test_a_thousand_hourly_tenants_are_spread_evenly_and_each_keeps_its_place() -> None:
    later = [spread(f"tenant-{number}", HOUR, 0.1) for number in range(1000)]
    assert later == [spread(f"tenant-{number}", HOUR, 0.1) for number in range(1000)]
    in_each_minute = [sum(minute <= each / timedelta(minutes=1) < minute + 1 for each in later) for minute in range(6)]
    assert sum(in_each_minute) == 1000
    assert min(in_each_minute) > 120


def test_without_jitter_nobody_is_later() -> None:
    assert spread("acme", HOUR, 0.0) == timedelta(0)


@given(st.integers(0, 23), st.integers(0, 23), moments)
def test_hours_of_every_day_are_quiet_and_no_others(start: int, end: int, now: datetime) -> None:
    if start == end:
        return
    quiet = start <= now.hour < end if start < end else now.hour >= start or now.hour < end
    window = QuietHours(start=f"{start:02}:00", end=f"{end:02}:00")
    assert (quiet_until([window], now) is not None) is quiet


@given(st.lists(hours, max_size=4), moments)
def test_quiet_hours_end_when_they_say_and_not_before(quiet: list[QuietHours], now: datetime) -> None:
    until = quiet_until(quiet, now)
    if until is None:
        return
    assert until > now
    if until - now < timedelta(days=7):  # else it is always quiet, and no end is foreseen
        assert quiet_until(quiet, until) is None
        assert quiet_until(quiet, until - timedelta(seconds=1)) == until


def test_hours_belong_to_the_weekday_on_which_they_start() -> None:
    friday_night = [QuietHours(start="22:00", end="06:00", weekdays=["fri"])]
    friday, saturday = MONDAY + timedelta(days=4), MONDAY + timedelta(days=5)
    assert quiet_until(friday_night, saturday + 3 * HOUR) == saturday + 6 * HOUR
    assert quiet_until(friday_night, friday + 3 * HOUR) is None
    assert quiet_until(friday_night, saturday + 23 * HOUR) is None


def test_hours_that_follow_each_other_end_together() -> None:
    weekend = [
        QuietHours(start="00:00", end="24:00", weekdays=["sat", "sun"]),
        QuietHours(start="00:00", end="07:30", weekdays=["mon"]),
    ]
    monday = MONDAY + timedelta(days=7)
    assert quiet_until(weekend, monday - 30 * HOUR) == monday + 7.5 * HOUR


@pytest.mark.parametrize(
    ("day", "start", "end", "begins", "ends"),
    [
        ((2026, 1, 15), "01:00", "04:00", "00:00", "03:00"),  # winter
        ((2026, 3, 29), "01:00", "04:00", "00:00", "02:00"),  # 02:00 becomes 03:00
        ((2026, 10, 25), "02:30", "04:00", "00:30", "03:00"),  # 03:00 becomes 02:00, so 02:30 comes twice
        ((2026, 3, 29), "02:30", "05:00", "01:30", "03:00"),  # there is no 02:30
    ],
)
def test_quiet_hours_follow_the_clock_when_it_changes(
    day: tuple[int, int, int], start: str, end: str, begins: str, ends: str
) -> None:
    berlin = [QuietHours(start=start, end=end, time_zone="Europe/Berlin")]
    first, last = (datetime(*day, hour=int(clock[:2]), minute=int(clock[3:]), tzinfo=UTC) for clock in (begins, ends))
    assert quiet_until(berlin, first) == last
    assert quiet_until(berlin, first - timedelta(seconds=1)) is None


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ({"start": "25:00", "end": "06:00"}, "'25:00' is not a time of day"),
        ({"start": "24:00", "end": "06:00"}, "'24:00' is not a time of day"),
        ({"start": "8:00", "end": "9:00"}, "'8:00' is not a time of day"),
        ({"start": "08:00", "end": "08:00"}, "a whole day is from 00:00 to 24:00"),
        ({"start": "08:00"}, "quiet_hours.0.end"),
        ({"from": "08:00", "to": "09:00"}, "unknown field 'from'; known: start, end"),
        ({"start": "08:00", "end": "09:00", "time_zone": "Berlin"}, "'Berlin' is not an IANA time zone"),
        ({"start": "08:00", "end": "09:00", "time_zone": "../../etc/passwd"}, "is not an IANA time zone"),
        ({"start": "08:00", "end": "09:00", "weekdays": ["monday"]}, "quiet_hours.0.weekdays.0"),
        ({"start": "08:00", "end": "09:00", "weekdays": []}, "quiet_hours.0.weekdays"),
    ],
)
def test_quiet_hours_that_cannot_be_are_refused_in_one_line(window: dict, words: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        parse_config({"tenant_id": "a", "quiet_hours": [window]}, where="tenant a")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
