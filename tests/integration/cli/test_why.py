"""`autoopt why`, against a real Phoenix and a real instance."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import StoredJudged
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.text import ago, duration
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import autoopt
from tests.support.phoenix_traffic import requests
from tests.support.sequential_tests import made_step
from tests.support.stored_programs import FAST, SLOW, made_program
from tests.support.stored_programs import store as stored_program
from tests.support.tenant_history import configure, failed_run

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def artifacts(home: Path, tenant: str) -> VersionStore:
    return VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), tenant, "routing")


@pytest.fixture
def why(store: TenantConfigStore, tenant: str) -> Callable[..., str]:
    return lambda *options, status=0: autoopt("why", tenant, "routing", *options, status=status)


def outcome(home: Path, tenant: str, **metadata: Any) -> None:
    with open_instance(home) as instance:
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                "routing",
                partition=tenant,
                metadata={"window_end": dg.MetadataValue.timestamp(datetime.now(UTC)), **metadata},
            )
        )


CANDIDATE = "20260101T000000Z-candidat"


def test_a_module_that_was_never_optimized_says_what_it_waits_for(
    store: TenantConfigStore, phoenix: Phoenix, tenant: str, why: Callable[..., str]
) -> None:
    configure(store, tenant)
    send_traffic(phoenix, tenant, requests(37, TrafficProfile(reviewed=0)))
    story = why()
    assert "too_few_traces: 37 new traces, 100 needed" in story
    assert "never optimized" in story
    assert "37 of 100 new traces and annotations; as traces came in the last day (37), that is in about 41 h" in story
    assert "serves  baseline" in story
    facts = json.loads(why("--json"))
    assert facts["traces_per_day"] == 37
    assert facts["enough_traces_in_seconds"] == round(63 / 37 * 86400)
    assert facts["config"]["min_samples_for_optimization"] == 100


def test_the_last_outcome_and_what_serves_are_told_with_who_and_why(
    home: Path, store: TenantConfigStore, tenant: str, why: Callable[..., str], artifacts: VersionStore
) -> None:
    configure(store, tenant)
    version = stored_program(artifacts, made_program(tenant))
    artifacts.transition(version, expected=None, actor="ada", reason="people like [it]", canary={"baseline": 0.1})
    outcome(
        home,
        tenant,
        verdict="awaiting_approval",
        reason="proven better: 9 fixed",
        version="v2",
        incumbent_score=0.25,
        candidate_score=0.5,
        lm_calls=12,
    )
    story = why()
    last = r"awaiting_approval, \d+ s ago: proven better: 9 fixed; score 25.0 -> 50.0 %; version v2; 12 LM calls"
    assert re.search(last, story)
    assert f"autoopt promote {tenant} routing v2" in story
    assert f"{version}, 90.0 % on the held-out traces" in story
    assert "moved by ada: people like [it]" in story
    assert "baseline keeps 10 % of requests" in story
    facts = json.loads(why("--json"))
    assert (facts["last_run"]["candidate_score"], facts["last_run"]["lm_calls"]) == (0.5, 12)
    assert (facts["last_transition"]["actor"], facts["active_version"]) == ("ada", version)
    assert datetime.fromisoformat(facts["last_run"]["at"]).utcoffset() == timedelta(0)


def test_the_cost_of_a_decision_is_told_of_what_serves(
    home: Path, store: TenantConfigStore, tenant: str, why: Callable[..., str], artifacts: VersionStore
) -> None:
    configure(store, tenant)
    assert "a decision costs" not in why()
    outcome(home, tenant, verdict="rejected", lm_dollars=0.25, lm_calls=9, costs={"incumbent": SLOW.model_dump()})
    story = why()
    assert "9 LM calls, about $0.25" in story
    assert "cost  a decision costs 2,950 tokens, dollars unknown, and takes 1.2 s (p95 2.5 s)\n" in story
    version = stored_program(artifacts, made_program(tenant), changes={"costs": {"incumbent": SLOW, "candidate": FAST}})
    artifacts.transition(version, expected=None, actor="ada", reason="")
    assert (
        "cost  a decision costs 312 tokens, about $0.00012, and takes 0.4 s (p95 0.9 s); "
        "the incumbent's 2,950 tokens, dollars unknown, 1.2 s (p95 2.5 s)\n"
    ) in " ".join(why().split(" "))
    facts = json.loads(why("--json"))
    assert facts["active_cost"] == FAST.model_dump()
    assert facts["last_run"]["costs"] == {"incumbent": SLOW.model_dump()}


def test_failures_are_told_with_their_cause_and_the_next_attempt(
    home: Path, store: TenantConfigStore, tenant: str, why: Callable[..., str]
) -> None:
    configure(store, tenant)
    with open_instance(home) as instance:
        killed = failed_run(instance, tenant, ["routing"])
        failed_run(instance, tenant, ["modality"])
    autoopt("trigger", "--tenant-id", tenant, "--module", "routing", "--force", status=2)
    story = why()
    assert "2 in a row since then" in story
    assert "has no project" in story
    assert f"run {killed}: " in story
    assert "next decision in 2 h" in story or "next decision in 120 min" in story
    (newest, oldest) = json.loads(why("--json"))["failed_runs"]
    assert "has no project" in newest["cause"]
    assert oldest["run_id"] == killed


def test_an_open_trial_says_how_far_it_is_and_a_move_ends_it(
    store: TenantConfigStore, tenant: str, why: Callable[..., str], artifacts: VersionStore
) -> None:
    configure(store, tenant)
    artifacts.add_sequential_test_step(made_step(CANDIDATE, scores=[(1.0, 1.0)]))
    assert re.search(rf"{CANDIDATE}, since \d+ s ago: \+0.0 points on 1 held-out traces", why())
    artifacts.add_sequential_test_step(made_step(CANDIDATE, 2, scores=[(0.0, 1.0), (1.0, 1.0), (1.0, 1.0)]))
    assert "+25.0 points on 4 held-out traces" in why()
    version = stored_program(artifacts, made_program(tenant))
    artifacts.transition(version, expected=None, actor="ada", reason="")
    assert json.loads(why("--json"))["sequential_test"] is None


def test_it_says_how_often_people_agree_with_the_judge(
    store: TenantConfigStore, tenant: str, why: Callable[..., str], artifacts: VersionStore
) -> None:
    configure(store, tenant)
    assert json.loads(why("--json"))["judge"] is None
    step = made_step(CANDIDATE, scores=[(0.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
    assert step.batch
    asked = StoredJudged(difference=1.0, share=1.0, asked=True)
    cases = [case.model_copy(update={"judged": asked}) for case in step.batch.reviewed]
    batch = step.batch.model_copy(update={"reviewed": cases})
    artifacts.add_sequential_test_step(step.model_copy(update={"batch": batch, "judge": "openai/judge"}))
    assert "people agree with openai/judge on 2 of 3 disagreements (a 2 of 3)" in why()
    judge = {"judge": "openai/judge", "reviews": 3, "agreed": 2, "by_class": {"a": [2, 3]}}
    assert json.loads(why("--json"))["judge"] == judge


def test_a_trial_that_is_decided_is_not_open(
    store: TenantConfigStore, tenant: str, why: Callable[..., str], artifacts: VersionStore
) -> None:
    configure(store, tenant)
    artifacts.add_sequential_test_step(made_step(CANDIDATE))
    artifacts.add_sequential_test_step(made_step(CANDIDATE, 2, verdict="promoted"))
    assert json.loads(why("--json"))["sequential_test"] is None


def test_a_rollback_that_nobody_made_is_told(
    home: Path, store: TenantConfigStore, tenant: str, why: Callable[..., str]
) -> None:
    configure(store, tenant)
    metadata = {"event": "rolled_back", "reason": "errors rose", "from": "v2", "to": "v1"}
    with open_instance(home) as instance:
        instance.report_runless_asset_event(dg.AssetObservation("routing", partition=tenant, metadata=metadata))
        instance.report_runless_asset_event(dg.AssetObservation("routing", partition="other", metadata=metadata))
    story = why()
    assert "rolled back" in story
    assert "errors rose; from v2, to v1" in story
    (event,) = json.loads(why("--json"))["events"]
    assert (event["kind"], event["details"]) == ("rolled_back", {"from": "v2", "to": "v1"})


def test_bad_words_are_one_line(store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant)
    assert "did you mean 'routing'?" in autoopt("why", tenant, "ruting", status=2)
    assert f"did you mean '{tenant}'?" in autoopt("why", tenant[:-1], "routing", status=2)


@given(st.timedeltas(timedelta(0), timedelta(days=3000)))
def test_a_duration_in_words_is_off_by_no_more_than_half_a_unit(span: timedelta) -> None:
    number, unit = duration(span).split()
    size = {"s": 1, "min": 60, "h": 3600, "days": 86400}[unit]
    assert abs(float(number) * size - span.total_seconds()) <= size / 2
    assert unit == "s" or span >= timedelta(seconds=2 * size)


def test_what_is_to_come_is_told_from_what_has_been() -> None:
    assert (ago(NOW - timedelta(hours=3), NOW), ago(NOW + timedelta(days=2), NOW)) == ("3 h ago", "in 2 days")
