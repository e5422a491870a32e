from datetime import timedelta

from autoopt_pipeline.run_history.module_events import ModuleEvent
from autoopt_pipeline.status.week import WeekEvents, summarize
from tests.support.sample_decisions import T0


def event(tenant: str | None, **values: object) -> ModuleEvent:
    return ModuleEvent(1, T0, tenant, "routing", f"run of {tenant}", values)


EVENTS = WeekEvents(
    T0 - timedelta(days=7),
    [
        event("a", verdict="promoted", gain=0.1, lm_calls=100, lm_tokens=5000, lm_dollars=0.5),
        event("b", verdict="promoted", gain=0.2, lm_calls=200, lm_tokens=7000, lm_dollars=0.25),
        event("c", verdict="rejected", gain=-0.1, lm_calls=50, lm_tokens=100, lm_dollars=0),
        event("e", verdict="rejected", lm_calls=50),
        event(None, verdict="promoted"),
        event("d", verdict="promoted", gain="much", lm_calls=float("nan")),
    ],
    [event("a", event="rolled_back")],
)


def test_a_week_adds_up_what_somebody_may_see() -> None:
    week = summarize(EVENTS, lambda tenant: tenant in {"a", "b", "c"})
    assert (week.runs, week.promotions, week.rollbacks) == (3, 2, 1)
    assert (week.lm_calls, week.lm_tokens, week.lm_dollars) == (350, 12100, 0.75)
    assert week.gain is not None
    assert week.interval
    assert round(week.gain, 6) == 0.15
    assert week.interval.low < 0.15 < week.interval.high


def test_what_is_not_known_is_not_made_up() -> None:
    week = summarize(EVENTS, {"d"}.__contains__)
    assert (week.promotions, week.gain, week.interval, week.lm_calls) == (1, None, None, 0)
    assert summarize(EVENTS, {"b", "e"}.__contains__).lm_dollars is None
    one = summarize(EVENTS, {"b"}.__contains__)
    assert (one.gain, one.interval, one.rollbacks) == (0.2, None, 0)
