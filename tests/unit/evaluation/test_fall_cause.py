"""What a fall comes from."""

from datetime import UTC, datetime, timedelta

import pytest

from autoopt_pipeline.evaluation.change_detector import Fall, Level
from autoopt_pipeline.evaluation.fall_cause import FAILED, Cause, cause_of, completed
from autoopt_pipeline.evaluation.model_change import p_value
from autoopt_pipeline.registry.quality_records import QualityFall
from autoopt_pipeline.registry.replays import ModelReplay

AT = datetime(2026, 11, 20, tzinfo=UTC)
EARLIER = {"search": (500, 0.9), "refunds": (300, 0.8), "billing": (200, 0.6)}


def fall(later: dict[str, tuple[int, float]], earlier: dict[str, tuple[int, float]] = EARLIER) -> Fall:
    def tallies(groups: dict[str, tuple[int, float]]) -> dict[str, dict[str, Level]]:
        return {
            "outcome": {
                group: Level(count=count, total=count * mean, squares=count * mean)
                for group, (count, mean) in groups.items()
            }
        }

    count = sum(count for count, _ in later.values())
    return Fall(AT, AT, 0.81, 0.7, count, tallies(earlier), tallies(later))


@pytest.mark.parametrize(
    ("later", "cause"),
    [
        ({"search": (50, 0.9), "refunds": (30, 0.4), "billing": (20, 0.6)}, (Cause.ONE_CLASS, "refunds")),
        ({"search": (10, 0.9), "refunds": (20, 0.8), "billing": (70, 0.6)}, (Cause.TRAFFIC, "")),
        ({"search": (10, 0.9), "new": (90, 0.3)}, (Cause.ONE_CLASS, "new")),
        ({"search": (45, 0.9), "refunds": (25, 0.8), FAILED: (30, 0.0)}, (Cause.FAILURES, "")),
        ({"search": (50, 0.8), "refunds": (30, 0.7), "billing": (20, 0.5)}, (Cause.UNKNOWN, "")),
    ],
)
def test_the_cause_is_what_explains_most(later: dict[str, tuple[int, float]], cause: tuple[Cause, str]) -> None:
    assert cause_of(fall(later)) == cause


def test_a_module_with_one_group_has_no_class_to_name() -> None:
    assert cause_of(fall({"": (100, 0.6)}, {"": (1000, 0.9)})) == (Cause.UNKNOWN, "")


DAY = timedelta(days=1)


def found(cause: Cause = Cause.UNKNOWN, group: str = "", detail: str = "") -> QualityFall:
    return QualityFall(
        what="quality",
        at=AT,
        since=AT - 2 * DAY,
        before=0.9,
        after=0.8,
        outcomes=100,
        cause=cause.value,
        group=group,
        detail=detail,
    )


def replay(repeated: int = 0, *, at: datetime = AT, since: datetime = AT - 30 * DAY, asked: int = 24) -> ModelReplay:
    return ModelReplay(
        tenant_id="acme",
        module="routing",
        version="v1",
        at=at,
        answered_at=since,
        same_at=since,
        lm="m",
        lm_before="m",
        asked=asked,
        changed=repeated,
        repeated=repeated,
        returned=0,
        p=p_value(asked, repeated, 0),
    )


def named(given: QualityFall, newest: ModelReplay | None, changed: ModelReplay | None = None) -> str:
    return completed(given, newest=newest, changed=changed, told_by_scores=True).cause


def test_a_changed_model_explains_what_counts_leave_open_and_nothing_else() -> None:
    changed = replay(8)
    assert named(found(), changed, changed) == Cause.MODEL
    one_class = completed(found(Cause.ONE_CLASS, "refunds"), newest=changed, changed=changed, told_by_scores=True)
    assert str(one_class).endswith(": the language model (refunds); " + str(changed))
    for cause in (Cause.TRAFFIC, Cause.FAILURES):
        assert named(found(cause), changed, changed) == cause


def test_a_change_long_before_or_after_the_fall_has_not_caused_it() -> None:
    long_before, long_after = replay(8, at=AT - 20 * DAY), replay(8, at=AT + 20 * DAY, since=AT + 10 * DAY)
    assert named(found(), None, long_before) == Cause.UNKNOWN
    assert named(found(), None, long_after) == Cause.UNKNOWN
    assert named(found(), None, replay(8, at=AT - 4 * DAY, since=AT - 5 * DAY)) == Cause.MODEL


def test_a_model_that_answers_as_before_leaves_the_traffic() -> None:
    same = replay()
    assert named(found(), same) == Cause.WITHIN_CLASSES
    assert named(found(Cause.ONE_CLASS, "refunds"), same) == Cause.ONE_CLASS
    confidence = found().model_copy(update={"what": "confidence"})
    told = completed(confidence, newest=same, changed=None, told_by_scores=False)
    assert (told.cause, told.detail) == (Cause.UNKNOWN, f"{same}, which does not tell")


def test_too_few_answers_before_or_since_the_fall_tell_nothing() -> None:
    hint = found(detail="the next run asks")
    assert completed(hint, newest=None, changed=None, told_by_scores=True) == hint
    assert completed(hint, newest=replay(at=AT - 3 * DAY), changed=None, told_by_scores=True) == hint
    late = completed(hint, newest=replay(since=AT - DAY), changed=None, told_by_scores=True)
    assert (late.cause, late.detail) == (Cause.UNKNOWN, "what m answered before it is not known")
    few = completed(hint, newest=replay(1), changed=None, told_by_scores=True)
    assert (few.cause, few.detail) == (Cause.UNKNOWN, f"{replay(1)}, which does not tell")
