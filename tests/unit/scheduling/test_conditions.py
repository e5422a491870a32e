from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.registry.quality_records import QualityFall
from autoopt_pipeline.scheduling.budgets import LMUsage, RemainingBudget
from autoopt_pipeline.scheduling.conditions import (
    MAX_BACKOFF,
    Attempts,
    Evidence,
    LostRun,
    NeedsEvidence,
    Reason,
    RunOutcome,
    ScheduleDecision,
    decide,
    new_since,
)
from autoopt_pipeline.tenants.config import (
    Agent,
    DailyBudget,
    ModuleSettings,
    QualityPolicy,
    QuietHours,
    Retry,
    RoutingConfigUnified,
    with_field,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
AGENTS = [Agent(name="search_agent"), Agent(name="report_agent")]
CONFIG = RoutingConfigUnified(tenant_id="acme", agents=AGENTS)
ROUTING = get_module("routing")

moments = st.integers(0, 10**7).map(lambda seconds: NOW - timedelta(seconds=seconds))
attempts = st.builds(
    Attempts,
    outcome_at=st.none() | moments,
    failures=st.integers(0, 60),
    last_failure_at=st.none() | moments,
    lost=st.none() | st.builds(LostRun, st.integers(1, 5), st.just("run-1"), st.none()),
    running=st.none() | st.just("run-1"),
).filter(lambda tried: tried.lost is None or tried.lost.times <= tried.failures)
configs = st.builds(
    lambda enabled, interval, need: RoutingConfigUnified(
        tenant_id="acme",
        agents=AGENTS,
        enable_auto_optimization=enabled,
        optimization_interval_seconds=interval,
        min_samples_for_optimization=need,
    ),
    st.booleans(),
    st.integers(1, 10**6),
    st.integers(1, 1000),
)
evidences = st.builds(Evidence, new_traces=st.integers(0, 2000), new_annotations=st.integers(0, 2000))


def decided(config: RoutingConfigUnified, tried: Attempts, evidence: Evidence | None) -> ScheduleDecision:
    answer = decide(config, ROUTING, tried, evidence, now=NOW)
    assert isinstance(answer, ScheduleDecision)
    return answer


def said(answer: ScheduleDecision | NeedsEvidence) -> ScheduleDecision | NeedsEvidence:
    """The decision without what else was looked at."""
    return replace(answer, conditions=(), evidence=None, need=None) if isinstance(answer, ScheduleDecision) else answer


@given(configs, attempts, evidences)
def test_due_means_every_condition_is_met(config: RoutingConfigUnified, tried: Attempts, evidence: Evidence) -> None:
    decision = decided(config, tried, evidence)
    if decision.launch:
        assert config.enable_auto_optimization
        assert tried.running is None
        assert evidence.total >= config.min_samples_for_optimization
        if tried.outcome_at and not tried.failures:
            assert NOW - tried.outcome_at >= timedelta(seconds=config.optimization_interval_seconds)
        if tried.failures and tried.last_failure_at:
            waited = (NOW - tried.last_failure_at).total_seconds()
            lost, retry = tried.lost.times if tried.lost else 0, config.retry
            doubled = config.optimization_interval_seconds * 2 ** (tried.failures - min(lost, retry.max_retries) - 1)
            longest = max(config.optimization_interval_seconds, MAX_BACKOFF.total_seconds())
            assert waited >= (retry.delay(lost) if 0 < lost <= retry.max_retries else min(doubled, longest))


@given(configs, attempts, evidences)
def test_phoenix_is_asked_only_when_nothing_cheaper_decides(
    config: RoutingConfigUnified, tried: Attempts, evidence: Evidence
) -> None:
    first = decide(config, ROUTING, tried, None, now=NOW)
    second = decided(config, tried, evidence)
    if isinstance(first, NeedsEvidence):
        assert second.reason in {Reason.DUE, Reason.TOO_FEW_TRACES}
    else:
        assert said(first) == said(second)


@given(configs, attempts, evidences)
def test_the_first_condition_that_is_not_met_decides(
    config: RoutingConfigUnified, tried: Attempts, evidence: Evidence
) -> None:
    decision = decided(config, tried, evidence)
    unmet = [condition for condition in decision.conditions if not condition.met]
    assert decision.launch == (not unmet)
    if unmet:
        assert (decision.reason, decision.detail) == (unmet[0].otherwise, unmet[0].detail)


@given(attempts, evidences, evidences)
def test_more_evidence_never_makes_a_due_module_wait(tried: Attempts, one: Evidence, other: Evidence) -> None:
    less, more = sorted([one, other], key=lambda evidence: evidence.total)
    if decided(CONFIG, tried, less).launch:
        assert decided(CONFIG, tried, more).launch


@given(configs, attempts)
def test_what_waits_says_until_when_and_is_free_then(config: RoutingConfigUnified, tried: Attempts) -> None:
    answer = decide(config, ROUTING, tried, None, now=NOW)
    if isinstance(answer, ScheduleDecision) and answer.until:
        assert answer.until > NOW
        later = decide(config, ROUTING, tried, None, now=answer.until)
        assert not isinstance(later, ScheduleDecision) or later.reason is not answer.reason


def test_backoff_doubles_and_is_capped() -> None:
    def wait(failures: int) -> timedelta:
        decision = decided(CONFIG, Attempts(failures=failures, last_failure_at=NOW), None)
        assert decision.reason is Reason.BACKING_OFF
        assert decision.until
        return decision.until - NOW

    hour = timedelta(hours=1)
    assert [wait(k) for k in (1, 2, 3)] == [hour, 2 * hour, 4 * hour]
    assert wait(4) == wait(50) == MAX_BACKOFF


def test_a_lost_run_is_tried_again_by_the_policy_and_counts_as_one_failure_with_its_tries() -> None:
    def wait(failures: int, lost: int, **retry: object) -> float:
        config = CONFIG.model_copy(update={"retry": Retry.model_validate(retry)})
        tried = Attempts(failures=failures, last_failure_at=NOW, lost=LostRun(lost, "run-1", None))
        decision = decided(config, tried, None)
        assert decision.reason is Reason.BACKING_OFF
        assert decision.until
        return (decision.until - NOW).total_seconds()

    assert [wait(n, n, max_retries=2, delay_seconds=5) for n in (1, 2, 3, 4)] == [5, 15, 3600, 7200]
    assert [wait(n, n, max_retries=2, delay_seconds=5, backoff="constant") for n in (1, 2)] == [5, 5]
    assert wait(1, 1, max_retries=0) == 3600
    assert wait(4, 1, max_retries=1, delay_seconds=9) == 9  # others had failed before, and this one was killed


def test_a_failure_does_not_hold_a_tenant_longer_than_its_own_interval_when_that_is_longest() -> None:
    config = RoutingConfigUnified(tenant_id="a", agents=AGENTS, optimization_interval_seconds=86400)
    decision = decided(config, Attempts(failures=9, last_failure_at=NOW), None)
    assert decision.until == NOW + timedelta(days=1)


def test_new_traces_count_from_what_was_last_learnt_from_within_the_lookback() -> None:
    outcome = RunOutcome(NOW - timedelta(hours=2), annotations=None)
    assert new_since(CONFIG, outcome, now=NOW) == outcome.window_end
    old = RunOutcome(NOW - timedelta(days=400), annotations=None)
    assert new_since(CONFIG, old, now=NOW) == NOW - timedelta(seconds=CONFIG.lookback_seconds)
    assert new_since(CONFIG, None, now=NOW) == NOW - timedelta(seconds=CONFIG.lookback_seconds)


def test_an_outcome_of_a_clock_that_ran_ahead_does_not_hide_the_traces_of_today() -> None:
    ahead = RunOutcome(NOW + timedelta(days=2), annotations=None)
    assert new_since(CONFIG, ahead, now=NOW) == NOW - timedelta(seconds=CONFIG.lookback_seconds)
    hardly = RunOutcome(NOW + timedelta(seconds=20), annotations=None)
    assert new_since(CONFIG, hardly, now=NOW) == hardly.window_end


def test_annotations_on_old_traces_are_new_evidence() -> None:
    assert decided(CONFIG, Attempts(), Evidence(60, 40)).launch
    assert "60 new traces and 39 new annotations, 100 needed" in decided(CONFIG, Attempts(), Evidence(60, 39)).detail


def test_each_way_to_turn_a_module_off_says_which() -> None:
    off = RoutingConfigUnified(tenant_id="a", enable_auto_optimization=False)
    without = RoutingConfigUnified(tenant_id="a", modules={})
    module_off = RoutingConfigUnified(tenant_id="a", modules={"routing": ModuleSettings(mode="off")})
    tenant_off = RoutingConfigUnified(tenant_id="a", mode="off")
    no_agents = RoutingConfigUnified(tenant_id="a")
    decisions = [decided(config, Attempts(), None) for config in (off, without, module_off, tenant_off, no_agents)]
    assert {decision.reason for decision in decisions} == {Reason.DISABLED}
    assert len({decision.detail for decision in decisions}) == 5
    assert decisions[-1].detail == "the tenant lists 0 agents; routing needs at least 2 to choose from"


def test_a_module_that_was_observed_is_due_in_another_mode() -> None:
    tried, observed = Attempts(outcome_at=NOW - timedelta(days=1)), _after("would_have_promoted")
    waits = decide(with_field(CONFIG, "mode", "observe"), ROUTING, tried, Evidence(0), observed, now=NOW)
    assert isinstance(waits, ScheduleDecision)
    assert not waits.launch
    due = decide(CONFIG, ROUTING, tried, Evidence(0), replace(observed, version="v1"), now=NOW)
    assert isinstance(due, ScheduleDecision)
    assert due.launch
    assert due.detail == "mode is auto now, and v1 was only observed"


def _after(verdict: str, *, decisions: int = 1000, labels: frozenset[str] | None = None) -> RunOutcome:
    return RunOutcome(NOW - timedelta(days=1), None, verdict, decisions, labels)


def test_after_a_rejection_the_next_attempt_needs_clearly_more() -> None:
    tried = Attempts(outcome_at=NOW - timedelta(days=1))
    for verdict, need in (("promoted", 100), ("inconclusive", 100), ("rejected", 250)):
        answer = decide(CONFIG, ROUTING, tried, Evidence(249), _after(verdict), now=NOW)
        assert isinstance(answer, ScheduleDecision)
        assert answer.need == need
        assert answer.launch is (need == 100)
    enough = decide(CONFIG, ROUTING, tried, Evidence(250), _after("rejected"), now=NOW)
    assert isinstance(enough, ScheduleDecision)
    assert enough.launch


def test_what_is_older_than_the_lookback_asks_for_nothing_more() -> None:
    tried = Attempts(outcome_at=NOW - timedelta(days=40))
    before = RunOutcome(NOW - timedelta(days=30), None, "rejected", 40_000)
    answer = decide(CONFIG, ROUTING, tried, Evidence(9900), before, now=NOW)
    assert isinstance(answer, ScheduleDecision)
    assert answer.launch


def test_another_language_model_makes_a_module_due() -> None:
    tried = Attempts(outcome_at=NOW - timedelta(days=1))
    for models, before, due in (
        (("openai/new",), ("openai/old",), True),
        (("openai/old", "openai/new"), ("openai/old",), True),
        (("openai/old",), ("openai/old", "openai/retired"), True),
        (("openai/old",), ("openai/old",), False),
        (("openai/old",), None, False),  # an outcome of an earlier release
        (None, ("openai/old",), False),
    ):
        answer = decide(
            CONFIG, ROUTING, tried, Evidence(0), replace(_after("rejected"), models=before), now=NOW, models=models
        )
        assert isinstance(answer, ScheduleDecision)
        assert answer.launch is due
        assert ("the language models changed from" in answer.detail) is due


def test_an_agent_that_was_added_makes_a_module_due_that_answers_with_agents() -> None:
    tried = Attempts(outcome_at=NOW - timedelta(days=1))
    before = _after("promoted", labels=frozenset({"search_agent"}))
    answer = decide(CONFIG, ROUTING, tried, Evidence(0), before, now=NOW)
    assert isinstance(answer, ScheduleDecision)
    assert (answer.reason, "report_agent" in answer.detail) == (Reason.DUE, True)
    for spec, outcome in (
        (get_module("modality"), before),
        (ROUTING, _after("promoted", labels=frozenset({"search_agent", "report_agent", "gone_agent"}))),
    ):
        answer = decide(CONFIG, spec, tried, Evidence(0), outcome, now=NOW)
        assert isinstance(answer, ScheduleDecision)
        assert answer.reason is Reason.TOO_FEW_TRACES


def retraining(config: RoutingConfigUnified, since: datetime) -> RoutingConfigUnified:
    return config.model_copy(update={"modules": {"routing": ModuleSettings(retrain_after=since)}})


@given(configs, attempts, moments)
def test_a_module_that_is_to_be_retrained_waits_for_no_interval_and_no_evidence_until_an_outcome_is_newer(
    config: RoutingConfigUnified, tried: Attempts, since: datetime
) -> None:
    asked = decide(retraining(config, since), ROUTING, tried, None, now=NOW)
    usual = decide(config, ROUTING, tried, None, now=NOW)
    if isinstance(usual, ScheduleDecision) and usual.reason is not Reason.NOT_DUE:
        assert said(asked) == said(usual)  # disabled, under way and backing off still count
    elif tried.outcome_at and tried.outcome_at > since:
        assert said(asked) == said(usual)
    else:
        assert isinstance(asked, ScheduleDecision)
        assert asked.launch
        assert "to be retrained" in asked.detail


def test_retraining_does_not_begin_before_its_moment() -> None:
    later = retraining(CONFIG, NOW + timedelta(seconds=1))
    assert isinstance(decide(later, ROUTING, Attempts(), None, now=NOW), NeedsEvidence)


def fallen(at: datetime) -> QualityFall:
    return QualityFall(
        what="quality", at=at, since=at, before=0.91, after=0.78, outcomes=80, cause="one class (refunds)"
    )


@given(configs, attempts, moments)
def test_a_fall_in_quality_makes_a_module_due_at_once_until_an_outcome_is_newer(
    config: RoutingConfigUnified, tried: Attempts, at: datetime
) -> None:
    asked = decide(config, ROUTING, tried, None, now=NOW, fall=fallen(at))
    usual = decide(config, ROUTING, tried, None, now=NOW)
    if isinstance(usual, ScheduleDecision) and usual.reason is not Reason.NOT_DUE:
        assert said(asked) == said(usual)  # disabled, under way and backing off still count
    elif tried.outcome_at and tried.outcome_at > at:
        assert said(asked) == said(usual)
    else:
        assert isinstance(asked, ScheduleDecision)
        assert (asked.reason, asked.launch, asked.waiting_since) == (Reason.QUALITY_FELL, True, at)
        assert asked.detail == f"quality fell from 91 to 78 % since {at:%Y-%m-%d}: one class (refunds)"


def test_a_fall_waits_for_quiet_hours_and_the_days_budget_and_counts_only_where_it_is_monitored() -> None:
    fall = fallen(NOW - timedelta(hours=1))
    ignored = CONFIG.model_copy(update={"quality": QualityPolicy(monitor=False)})
    assert isinstance(decide(ignored, ROUTING, Attempts(), None, now=NOW, fall=fall), NeedsEvidence)
    quiet = decide(NIGHT, ROUTING, Attempts(), None, now=NOW, fall=fall)
    spent = decide(CONFIG, ROUTING, Attempts(), None, now=NOW, fall=fall, budgets=[SPENT])
    assert isinstance(quiet, ScheduleDecision)
    assert isinstance(spent, ScheduleDecision)
    assert (quiet.reason, spent.reason) == (Reason.QUIET_HOURS, Reason.BUDGET_EXHAUSTED)


NIGHT = CONFIG.model_copy(update={"quiet_hours": [QuietHours(start="22:00", end="06:00")]})
SPENT = RemainingBudget("this tenant", DailyBudget(max_lm_calls=100), LMUsage(lm_calls=130))


@given(configs, attempts, st.floats(0, 1))
def test_jitter_makes_a_module_due_later_by_at_most_its_share_of_the_interval(
    config: RoutingConfigUnified, tried: Attempts, jitter: float
) -> None:
    plain = decide(config, ROUTING, tried, None, now=NOW)
    spread = decide(config, ROUTING, tried, None, now=NOW, jitter=jitter)
    if isinstance(plain, ScheduleDecision) and plain.until:
        assert isinstance(spread, ScheduleDecision)
        assert spread.until
        later = spread.until - plain.until
        assert timedelta(0) <= later <= jitter * timedelta(seconds=config.optimization_interval_seconds)


def test_all_modules_of_a_tenant_are_due_together_whatever_the_jitter() -> None:
    tried = Attempts(outcome_at=NOW)
    due = {
        answer.until
        for name in ("routing", "modality")
        if isinstance(answer := decide(CONFIG, get_module(name), tried, None, now=NOW, jitter=0.5), ScheduleDecision)
    }
    assert len(due) == 1


def test_quiet_hours_and_the_days_budget_hold_what_is_due_before_phoenix_is_asked() -> None:
    quiet = decide(NIGHT, ROUTING, Attempts(), None, now=NOW)
    assert isinstance(quiet, ScheduleDecision)
    assert (quiet.reason, quiet.until) == (Reason.QUIET_HOURS, NOW.replace(hour=6, minute=0, second=0))
    spent = decide(CONFIG, ROUTING, Attempts(), None, now=NOW, budgets=[SPENT])
    assert isinstance(spent, ScheduleDecision)
    assert spent.reason is Reason.BUDGET_EXHAUSTED
    assert spent.until == datetime(2026, 1, 3, tzinfo=UTC)
    assert spent.detail.startswith("130 of 100 LM calls a day are spent (this tenant); a new day begins in 21 h")


def test_what_is_not_due_says_so_in_quiet_hours_too() -> None:
    tried = Attempts(outcome_at=NOW)
    answer = decide(NIGHT, ROUTING, tried, None, now=NOW, budgets=[SPENT])
    assert isinstance(answer, ScheduleDecision)
    assert answer.reason is Reason.NOT_DUE


def test_retraining_waits_for_the_end_of_quiet_hours_and_for_a_new_budget() -> None:
    for config, budgets in ((NIGHT, []), (CONFIG, [SPENT])):
        answer = decide(retraining(config, NOW), ROUTING, Attempts(), None, now=NOW, budgets=budgets)
        assert isinstance(answer, ScheduleDecision)
        assert not answer.launch


def test_reviews_and_not_traces_make_a_module_due_that_awaits_them() -> None:
    tried = Attempts(outcome_at=NOW - timedelta(days=1), outcome_id=1)
    outcome = RunOutcome(NOW - timedelta(days=1), None, "awaiting_reviews", 600, version="v7", reviews_needed=12)

    def after(traces: int, reviews: int) -> ScheduleDecision:
        answer = decide(CONFIG, ROUTING, tried, Evidence(traces, reviews), outcome, now=NOW)
        assert isinstance(answer, ScheduleDecision)
        return answer

    waiting = after(5000, 11)
    assert (waiting.reason, waiting.need) == (Reason.AWAITING_REVIEWS, 12)
    assert waiting.detail == "11 new reviews; 12 can decide about v7"
    assert after(0, 12).reason is Reason.DUE
