"""How many annotations are new where old ones are deleted."""

from datetime import UTC, datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from autoopt_pipeline.scheduling.annotation_counts import MARKS, AnnotationsSeen

START = datetime(2026, 1, 1, tzinfo=UTC)
seconds = st.integers(0, 10_000)


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


@given(st.lists(seconds, max_size=MARKS), seconds, st.integers(0, 50))
@example([7, 7, 9], 9, 4)
def test_few_annotations_are_known_exactly(spans: list[int], oldest: int, added: int) -> None:
    seen = AnnotationsSeen.of(len(spans), map(at, spans), read_from=START, oldest=START)
    left = sum(span >= oldest for span in spans)
    assert seen.new(left + added, oldest=at(oldest)) == added


@given(st.lists(seconds, min_size=MARKS, max_size=400), seconds)
def test_of_many_annotations_it_is_known_between_which_marks_the_oldest_is(spans: list[int], oldest: int) -> None:
    seen = AnnotationsSeen.of(len(spans), map(at, spans), read_from=START, oldest=START)
    left = sum(span >= oldest for span in spans)
    mistake = 100_000 - left - seen.new(100_000, oldest=at(oldest))
    same_second = max(spans.count(span) for span in spans)
    assert abs(mistake) <= len(spans) / (MARKS - 1) + same_second
    assert len(seen.marks) == MARKS


def test_what_was_not_read_is_spread_evenly_over_the_time_before() -> None:
    day = timedelta(days=1)
    seen = AnnotationsSeen.of(1000, [START + day] * 100, read_from=START, oldest=START - 90 * day)
    assert seen.new(1000, oldest=START - 90 * day) == 0
    assert 290 <= seen.new(1000, oldest=START - 60 * day) <= 310  # a third of the 900 that were not read
    assert seen.new(100, oldest=START + day) <= 1000 / (MARKS - 1)
    assert seen.new(100, oldest=START + 2 * day) == 100


def test_where_all_traces_are_gone_everything_is_new_and_a_total_that_only_fell_says_nothing() -> None:
    seen = AnnotationsSeen.of(3, [at(1), at(2), at(3)], read_from=START, oldest=START)
    assert seen.new(5, oldest=None) == 5
    assert seen.new(2, oldest=START) == 0
    assert AnnotationsSeen(0).new(4, oldest=START) == 4
    assert AnnotationsSeen(10).new(12, oldest=START) == 2  # an outcome that kept no marks
