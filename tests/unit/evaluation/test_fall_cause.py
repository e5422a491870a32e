"""What a fall comes from."""

from datetime import UTC, datetime

import pytest

from autoopt_pipeline.evaluation.change_detector import Fall, Level
from autoopt_pipeline.evaluation.fall_cause import FAILED, Cause, cause_of

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
