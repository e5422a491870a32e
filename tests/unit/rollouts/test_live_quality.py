"""Which outcomes of a version count, and since when."""

from datetime import UTC, datetime, timedelta
from typing import Any

from autoopt_pipeline.evaluation.fall_cause import FAILED, Cause
from autoopt_pipeline.evaluation.quality_monitor import QualityMonitor, Stream
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Annotation, Label, LoggedDecision
from autoopt_pipeline.registry.quality_records import QualityFall
from autoopt_pipeline.rollouts.live_quality import LATE_DAYS, monitor_of, open_cause, outcomes_of
from autoopt_pipeline.span_contract import DISAGREEMENT_SAMPLING
from autoopt_pipeline.tenants.config import QualityPolicy, RoutingConfigUnified

T0 = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
LABELS = (Label("search_agent"), Label("report_agent"))


def decision(
    hour: float,
    *annotations: Annotation,
    failed: bool = False,
    success: bool | None = True,
    agent: str = LABELS[0].name,
) -> LoggedDecision:
    attributes: dict[str, Any] = {
        "routing.query": f"where at {hour}?",
        "routing.chosen_agent": agent,
        "routing.confidence": 0.7,
        "routing.success": success,
    }
    return LoggedDecision(f"s{hour}", f"t{hour}", T0 + hour * HOUR, failed, attributes, annotations)


def review(label: str, hour: float, kind: str = "HUMAN", **metadata: str) -> Annotation:
    return Annotation(kind, label, dict(metadata), T0 + hour * HOUR)


def scores(*decisions: LoggedDecision, after: float = 0, until: float = 10) -> list[tuple[float, str, str]]:
    found = outcomes_of(get_module("routing"), LABELS, decisions, after=T0 + after * HOUR, until=T0 + until * HOUR)
    return [(outcome.score, outcome.source, outcome.group) for outcome in found[Stream.SCORE]]


def test_an_outcome_counts_when_it_becomes_known_by_its_source_and_class() -> None:
    early = decision(-5, review("wrong", 2))
    late = decision(1, review("correct", 11))
    assert scores(early, late, decision(3), decision(-1)) == [
        (0.0, "human", "search_agent"),
        (1.0, "outcome", "search_agent"),
    ]
    assert scores(early, late, decision(3), decision(-1), after=10, until=20) == [(1.0, "human", "search_agent")]


def test_judges_count_and_reviews_of_disagreements_do_not() -> None:
    key, value = DISAGREEMENT_SAMPLING
    assert scores(decision(1, review("wrong", 2, "LLM"), agent="report_agent")) == [(0.0, "judge", "report_agent")]
    assert scores(decision(1, review("wrong", 2, **{key: value}))) == [(1.0, "outcome", "search_agent")]


def test_failures_are_outcomes_only_where_successes_are_known() -> None:
    failed, silent = decision(1, failed=True), decision(2, success=None)
    assert scores(failed, silent) == []
    assert scores(failed, silent, decision(3)) == [(0.0, "outcome", FAILED), (1.0, "outcome", "search_agent")]
    streams = outcomes_of(get_module("routing"), LABELS, [failed, silent], after=T0, until=T0 + 10 * HOUR)
    assert [outcome.score for outcome in streams[Stream.FAILURES]] == [0.0, 1.0]
    assert [outcome.score for outcome in streams[Stream.CONFIDENCE]] == [0.7, 0.7]


def test_another_version_is_monitored_from_the_last_check_on() -> None:
    known = QualityMonitor(version="v1", began=T0 - 50 * HOUR, until=T0)
    later = T0 + 24 * HOUR
    assert monitor_of(known, "v1", until=later, begins=None) is known
    other = monitor_of(known, "v2", until=later, begins=None)
    assert (other.version, other.began, other.until) == ("v2", T0, T0)
    new = monitor_of(None, None, until=later, begins=None)
    assert new.began == later - timedelta(days=LATE_DAYS)


def test_an_earlier_tenant_of_that_name_does_not_count() -> None:
    known = QualityMonitor(version=None, began=T0 - 50 * HOUR, until=T0)
    anew = monitor_of(known, None, until=T0 + 24 * HOUR, begins=T0 + HOUR)
    assert (anew.began, anew.streams) == (T0 + HOUR, {})


def test_a_fall_that_nothing_explains_says_what_will() -> None:
    fall = QualityFall(
        what="quality", at=T0, since=T0, before=0.9, after=0.8, outcomes=100, cause=Cause.UNKNOWN.value, detail=""
    )

    def opened(calls: int, *, asks_model: bool = True, cause: Cause = Cause.UNKNOWN) -> QualityFall:
        config = RoutingConfigUnified(tenant_id="acme", quality=QualityPolicy(replay_calls=calls))
        return open_cause(fall.model_copy(update={"cause": cause.value}), config, asks_model=asks_model)

    assert opened(0).detail.startswith("set quality.replay_calls=60, and the next run")
    assert opened(60).detail.startswith("the next run asks the model again")
    alone = opened(60, asks_model=False)
    assert (alone.cause, alone.detail) == ("traffic within classes", "this version asks no language model")
    assert opened(0, cause=Cause.TRAFFIC).detail == ""
