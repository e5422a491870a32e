"""New versions beside their predecessors: who serves, who is remembered, and what ends it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from autoopt_pipeline.erasure.programs import erase_from_programs
from autoopt_pipeline.erasure.target import ErasureTarget
from autoopt_pipeline.errors import InvalidArtifact, PromotionConflict
from autoopt_pipeline.registry.export import delete
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.promotion_blocks import block_reason_from_history
from autoopt_pipeline.registry.rollout_records import (
    RolloutIndexEntry,
    drop_index_entry,
    index_rollout,
    indexed_rollouts,
    record_analysis,
)
from autoopt_pipeline.registry.transitions import active_rollout, rollback_stack, rolled_back
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.analysis import AnalysisStatus, RolloutAnalysis
from autoopt_pipeline.rollouts.rollout import finish_rollout, roll_out
from autoopt_pipeline.tenants.config import RolloutPolicy
from tests.support.stored_programs import made_program, store

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OFF, ON, CANARY = RolloutPolicy(monitor=False), RolloutPolicy(), RolloutPolicy(canary_fraction=0.2)


@pytest.fixture
def files(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path))


@pytest.fixture
def artifacts(files: ObjectStore) -> VersionStore:
    return VersionStore(files, "acme", "routing")


@pytest.fixture
def one(artifacts: VersionStore) -> str:
    return store(artifacts, made_program("acme", demos=["one"]), 1)


@pytest.fixture
def two(artifacts: VersionStore) -> str:
    return store(artifacts, made_program("acme", demos=["two"]), 2)


def bring(artifacts: VersionStore, version: str, settings: RolloutPolicy) -> None:
    active = artifacts.active()
    before = active.version if active else None
    roll_out(artifacts, version, expected=before, actor="run 1", reason="better", policy=settings)


def serving(artifacts: VersionStore) -> tuple[str | None, dict[str, float] | None]:
    last = artifacts.last_transition()
    return (last.to_version, last.canary) if last else (None, None)


def end(artifacts: VersionStore, verdict: AnalysisStatus) -> None:
    rollout = active_rollout(artifacts.last_transition())
    assert rollout
    stays = rollout.against if verdict is AnalysisStatus.WORSE else rollout.version
    finish_rollout(artifacts, rollout, RolloutAnalysis(verdict, "seen in production"), stays=stays)


def test_the_predecessor_keeps_a_share_be_it_a_version_or_the_baseline(
    artifacts: VersionStore, one: str, two: str
) -> None:
    bring(artifacts, one, ON)
    assert serving(artifacts) == (one, {"baseline": 0.1})
    bring(artifacts, two, ON)
    assert serving(artifacts) == (two, {one: 0.1})
    assert rollback_stack(artifacts.transitions()) == (None, one, two)


def test_a_canary_gets_a_share_before_it_is_active(artifacts: VersionStore, one: str, two: str) -> None:
    bring(artifacts, one, OFF)
    bring(artifacts, two, CANARY)
    assert serving(artifacts) == (one, {two: 0.2})
    assert rollback_stack(artifacts.transitions()) == (None, one)
    end(artifacts, AnalysisStatus.BETTER)
    assert serving(artifacts) == (two, None)
    assert rollback_stack(artifacts.transitions()) == (None, one, two)


def test_without_a_watch_a_version_serves_alone(artifacts: VersionStore, one: str) -> None:
    bring(artifacts, one, OFF)
    assert serving(artifacts) == (one, None)
    assert indexed_rollouts(artifacts._files) == []


def test_a_predecessor_that_cannot_serve_keeps_nothing(
    artifacts: VersionStore, one: str, two: str, tmp_path: Path
) -> None:
    bring(artifacts, one, OFF)
    (tmp_path / "acme" / "routing" / "versions" / one / "program.json").write_text("{}")
    bring(artifacts, two, ON)
    assert serving(artifacts) == (two, None)


@pytest.mark.parametrize("settings", [ON, CANARY])
def test_a_version_that_is_worse_in_production_goes_and_does_not_come_back(
    settings: RolloutPolicy, artifacts: VersionStore, one: str, two: str
) -> None:
    bring(artifacts, one, OFF)
    bring(artifacts, two, settings)
    end(artifacts, AnalysisStatus.WORSE)
    assert serving(artifacts) == (one, None)
    assert set(rolled_back(artifacts.transitions())) == {two}
    digest = next(m.program_sha256 for m in artifacts.versions() if m.version == two)
    assert "by rollout monitor (seen in production)" in (
        block_reason_from_history(digest, artifacts.versions(), artifacts.transitions()) or ""
    )
    (result,) = artifacts.rollout_results()
    assert (result.version, result.against, result.status) == (two, one, "worse")


@pytest.mark.parametrize(
    ("settings", "verdict", "epochs"),
    [
        (ON, AnalysisStatus.BETTER, 2),
        (ON, AnalysisStatus.WORSE, 2),
        (CANARY, AnalysisStatus.NOT_WORSE, 2),
        (CANARY, AnalysisStatus.WORSE, 1),
    ],
)
def test_a_promotion_begins_one_new_allowance_and_the_end_of_its_watch_none(
    settings: RolloutPolicy, verdict: AnalysisStatus, epochs: int, artifacts: VersionStore, one: str, two: str
) -> None:
    bring(artifacts, one, OFF)
    bring(artifacts, two, settings)
    end(artifacts, verdict)
    assert sum(transition.resets_alpha_budget for transition in artifacts.transitions()) == epochs


def test_a_watch_cannot_be_ended_twice_or_after_somebody_moved(artifacts: VersionStore, one: str, two: str) -> None:
    bring(artifacts, one, ON)
    rollout = active_rollout(artifacts.last_transition())
    assert rollout
    bring(artifacts, two, ON)
    with pytest.raises(PromotionConflict):
        finish_rollout(artifacts, rollout, RolloutAnalysis(AnalysisStatus.WORSE, "late"), stays=None)
    assert serving(artifacts) == (two, {one: 0.1})
    assert artifacts.rollout_results() == []


def test_a_canary_that_does_not_exist_is_refused_and_nothing_moves(artifacts: VersionStore, one: str) -> None:
    with pytest.raises(InvalidArtifact):
        artifacts.transition(one, expected=None, actor="t", reason="", canary={"20260101T000000Z-00000000": 0.1})
    assert artifacts.transitions() == []


def test_what_is_watched_is_found_without_looking_through_all_tenants(
    files: ObjectStore, artifacts: VersionStore
) -> None:
    other = VersionStore(files, "org:b", "modality")
    for each in (artifacts, other):
        module = each.module
        version = store(each, made_program(each.tenant_id, module, demos=["x"]), 1)
        bring(each, version, ON)
    found = {(entry.tenant_id, entry.module) for entry in indexed_rollouts(files)}
    assert found == {("acme", "routing"), ("org:b", "modality")}
    deleted = delete(files, "acme")
    assert "_rollouts/routing/acme.json" in deleted
    assert [entry.tenant_id for entry in indexed_rollouts(files)] == ["org:b"]


def test_looks_come_ever_less_often(files: ObjectStore) -> None:
    began = RolloutIndexEntry(tenant_id="acme", module="routing", at=NOW)
    assert began.is_due(NOW)
    hour = began.model_copy(update={"analyzed_at": NOW + timedelta(hours=1)})
    assert not hour.is_due(NOW + timedelta(hours=1, minutes=14))
    assert hour.is_due(NOW + timedelta(hours=1, minutes=15))
    looks, now, watched = 0, NOW, began
    while now < NOW + timedelta(days=14):
        if watched.is_due(now):
            looks, watched = looks + 1, watched.model_copy(update={"analyzed_at": now})
        now += timedelta(minutes=1)
    assert looks < 60


def test_while_reviews_may_come_an_old_rollout_is_analyzed_four_times_a_day() -> None:
    old = RolloutIndexEntry(tenant_id="acme", module="routing", at=NOW, analyzed_at=NOW + timedelta(days=8))
    later = NOW + timedelta(days=8, hours=6)
    assert not old.is_due(later)
    assert old.model_copy(update={"to_review": 3}).is_due(later)
    young = old.model_copy(update={"to_review": 3, "analyzed_at": NOW + timedelta(hours=1)})
    assert young.is_due(NOW + timedelta(hours=1, minutes=15))


def test_a_new_watch_is_neither_forgotten_nor_put_off_by_the_end_of_the_one_before(files: ObjectStore) -> None:
    index_rollout(files, "acme", "routing")
    (before,) = indexed_rollouts(files)
    index_rollout(files, "acme", "routing")
    (now,) = indexed_rollouts(files)
    record_analysis(files, before, datetime.now(UTC))
    drop_index_entry(files, before)
    assert indexed_rollouts(files) == [now]


def test_an_entry_that_was_lost_is_made_anew_and_one_that_stands_is_left_alone(
    files: ObjectStore, artifacts: VersionStore
) -> None:
    artifacts.keep_indexed(NOW)
    (made,) = indexed_rollouts(files)
    record_analysis(files, made, NOW)
    artifacts.keep_indexed(NOW)
    assert [entry.analyzed_at for entry in indexed_rollouts(files)] == [NOW]


def test_a_canary_that_holds_a_forgotten_text_serves_nobody_any_more(
    artifacts: VersionStore, one: str, two: str
) -> None:
    bring(artifacts, one, OFF)
    bring(artifacts, two, CANARY)
    cleaned = erase_from_programs(artifacts, ErasureTarget(frozenset(), frozenset({"two"})), actor="marta")
    assert cleaned.withdrawn == (two,)
    assert serving(artifacts) == (one, None)


def test_a_predecessor_that_holds_a_forgotten_text_gives_its_share_back(
    artifacts: VersionStore, one: str, two: str
) -> None:
    bring(artifacts, one, OFF)
    bring(artifacts, two, ON)
    erase_from_programs(artifacts, ErasureTarget(frozenset(), frozenset({"one"})), actor="marta")
    assert serving(artifacts) == (two, None)
    assert artifacts.withdrawal(one)
