"""The score of the serving program over time, from outcome to outcome."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import dagster as dg

from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.run_history.module_events import EventKind, ModuleEvent, newest_events
from autoopt_pipeline.run_history.outcomes import ModuleKey

_OUTCOMES = 12
"""Most outcomes that are shown of a module."""


@dataclass(frozen=True)
class Point:
    """The scores of an incumbent and its candidate on the held-out traces of one outcome, 0 to 1."""

    at: datetime
    before: float
    after: float
    verdict: str

    @property
    def serving(self) -> float:
        """The score of the program that serves from then on."""
        return self.after if self.verdict == Verdict.PROMOTED else self.before


def read_trends(
    instance: dg.DagsterInstance, keys: Collection[ModuleKey], begins: Mapping[str, datetime] | None = None
) -> Mapping[ModuleKey, Sequence[Point]]:
    """The last outcomes with scores, oldest first, and of tenants in `begins` only those since that moment.

    There is one query per module. If one tenant has many recent outcomes, older ones of other tenants may be missing.
    """
    tenants: dict[str, list[str]] = {}
    for tenant, module in keys:
        tenants.setdefault(module, []).append(tenant)
    trends: dict[ModuleKey, list[Point]] = {}
    for module, partitions in tenants.items():
        for event in newest_events(
            instance, EventKind.MATERIALIZATION, module, tenants=partitions, limit=_OUTCOMES * len(partitions)
        ).items:
            point = _point(event)
            if event.tenant and point and not (begins and point.at < begins.get(event.tenant, point.at)):
                trends.setdefault((event.tenant, module), []).append(point)
    return {key: points[:_OUTCOMES][::-1] for key, points in trends.items()}


def _point(event: ModuleEvent) -> Point | None:
    before, after = event.values.get("incumbent_score"), event.values.get("candidate_score")
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return None
    return Point(event.at, before, after, str(event.values.get("verdict", "")))


def sparkline(points: Sequence[Point]) -> str:
    """The points of an SVG polyline in a box of 100 by 24, from the score before the first outcome to the present one.

    Empty without outcomes.
    """
    if not points:
        return ""
    scores = [points[0].before, *(point.serving for point in points)]
    step = 100 / (len(scores) - 1)
    return " ".join(f"{step * n:.1f},{22 - 20 * score:.1f}" for n, score in enumerate(scores))
