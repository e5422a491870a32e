"""New versions beside their predecessors: who serves, who is remembered, and what ends it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from autoopt_pipeline.erasure.programs import erase_from_programs
from autoopt_pipeline.erasure.target import ErasureTarget
from autoopt_pipeline.errors import InvalidArtifact, PromotionConflict
from autoopt_pipeline.registry.export import delete
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.promotion_blocks import comeback
from autoopt_pipeline.registry.rollout_records import Watched, all_watched, drop_watched, enter_watched, note_look
from autoopt_pipeline.registry.transitions import rollback_stack, rolled_back, watch_since
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.analysis import RolloutAnalysis, WatchVerdict
from autoopt_pipeline.rollouts.rollout import end_watch, roll_out
from autoopt_pipeline.tenants.config import WatchSettings
from tests.stored import made_program, store

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OFF, ON, CANARY = WatchSettings(enabled=False), WatchSettings(), WatchSettings(canary_share=0.2)


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


def bring(artifacts: VersionStore, version: str, settings: WatchSettings) -> None:
    active = artifacts.active()
    before = active.version if active else None
    roll_out(artifacts, version, expected=before, by="run 1", why="better", settings=settings)


def serving(artifacts: VersionStore) -> tuple[str | None, dict[str, float] | None]:
    last = artifacts.last_move()
    return (last.to, last.canary) if last else (None, None)


def end(artifacts: VersionStore, verdict: WatchVerdict) -> None:
    watch = watch_since(artifacts.last_move())
    assert watch
    stays = watch.against if verdict is WatchVerdict.WORSE else watch.version
    end_watch(artifacts, watch, RolloutAnalysis(verdict, "seen in production"), stays=stays)


def test_the_predecessor_keeps_a_share_be_it_a_version_or_the_baseline(
    artifacts: VersionStore, one: str, two: str
) -> None:
    bring(artifacts, one, ON)
    assert serving(artifacts) == (one, {"baseline": 0.1})
    bring(artifacts, two, ON)
    assert serving(artifacts) == (two, {one: 0.1})
    assert rollback_stack(artifacts.moves()) == (None, one, two)


def test_a_canary_gets_a_share_before_it_is_active(artifacts: VersionStore, one: str, two: str) -> None:
    bring(artifacts, one, OFF)
    bring(artifacts, two, CANARY)
    assert serving(artifacts) == (one, {two: 0.2})
    assert rollback_stack(artifacts.moves()) == (None, one)
    end(artifacts, WatchVerdict.BETTER)
    assert serving(artifacts) == (two, None)
    assert rollback_stack(artifacts.moves()) == (None, one, two)


def test_without_a_watch_a_version_serves_alone(artifacts: VersionStore, one: str) -> None:
    bring(artifacts, one, OFF)
    assert serving(artifacts) == (one, None)
    assert all_watched(artifacts._files) == []


def test_a_predecessor_that_cannot_serve_keeps_nothing(
    artifacts: VersionStore, one: str, two: str, tmp_path: Path
) -> None:
    bring(artifacts, one, OFF)
    (tmp_path / "acme" / "routing" / "versions" / one / "program.json").write_text("{}")
    bring(artifacts, two, ON)
    assert serving(artifacts) == (two, None)


@pytest.mark.parametrize("settings", [ON, CANARY])
def test_a_version_that_is_worse_in_production_goes_and_does_not_come_back(
    settings: WatchSettings, artifacts: VersionStore, one: str, two: str
) -> None:
    bring(artifacts, one, OFF)
    bring(artifacts, two, settings)
    end(artifacts, WatchVerdict.WORSE)
    assert serving(artifacts) == (one, None)
    assert set(rolled_back(artifacts.moves())) == {two}
    digest = next(m.program_sha256 for m in artifacts.versions() if m.version == two)
    assert "by watch (seen in production)" in (comeback(digest, artifacts.versions(), artifacts.moves()) or "")
    (result,) = artifacts.watches()
    assert (result.version, result.against, result.verdict) == (two, one, "worse")


@pytest.mark.parametrize(
    ("settings", "verdict", "epochs"),
    [
        (ON, WatchVerdict.BETTER, 2),
        (ON, WatchVerdict.WORSE, 2),
        (CANARY, WatchVerdict.NO_WORSE, 2),
        (CANARY, WatchVerdict.WORSE, 1),
    ],
)
def test_a_promotion_begins_one_new_allowance_and_the_end_of_its_watch_none(
    settings: WatchSettings, verdict: WatchVerdict, epochs: int, artifacts: VersionStore, one: str, two: str
) -> None:
    bring(artifacts, one, OFF)
    bring(artifacts, two, settings)
    end(artifacts, verdict)
    assert sum(move.judged for move in artifacts.moves()) == epochs


def test_a_watch_cannot_be_ended_twice_or_after_somebody_moved(artifacts: VersionStore, one: str, two: str) -> None:
    bring(artifacts, one, ON)
    watch = watch_since(artifacts.last_move())
    assert watch
    bring(artifacts, two, ON)
    with pytest.raises(PromotionConflict):
        end_watch(artifacts, watch, RolloutAnalysis(WatchVerdict.WORSE, "late"), stays=None)
    assert serving(artifacts) == (two, {one: 0.1})
    assert artifacts.watches() == []


def test_a_canary_that_does_not_exist_is_refused_and_nothing_moves(artifacts: VersionStore, one: str) -> None:
    with pytest.raises(InvalidArtifact):
        artifacts.move(one, expected=None, by="t", why="", canary={"20260101T000000Z-00000000": 0.1})
    assert artifacts.moves() == []


def test_what_is_watched_is_found_without_looking_through_all_tenants(
    files: ObjectStore, artifacts: VersionStore
) -> None:
    other = VersionStore(files, "org:b", "modality")
    for each in (artifacts, other):
        module = each.module
        version = store(each, made_program(each.tenant_id, module, demos=["x"]), 1)
        bring(each, version, ON)
    found = {(watched.tenant_id, watched.module) for watched in all_watched(files)}
    assert found == {("acme", "routing"), ("org:b", "modality")}
    deleted = delete(files, "acme")
    assert "_watches/routing/acme.json" in deleted
    assert [watched.tenant_id for watched in all_watched(files)] == ["org:b"]


def test_looks_come_ever_less_often(files: ObjectStore) -> None:
    began = Watched(tenant_id="acme", module="routing", at=NOW)
    assert began.is_due(NOW)
    hour = began.model_copy(update={"looked_at": NOW + timedelta(hours=1)})
    assert not hour.is_due(NOW + timedelta(hours=1, minutes=14))
    assert hour.is_due(NOW + timedelta(hours=1, minutes=15))
    looks, now, watched = 0, NOW, began
    while now < NOW + timedelta(days=14):
        if watched.is_due(now):
            looks, watched = looks + 1, watched.model_copy(update={"looked_at": now})
        now += timedelta(minutes=1)
    assert looks < 60


def test_a_new_watch_is_neither_forgotten_nor_put_off_by_the_end_of_the_one_before(files: ObjectStore) -> None:
    enter_watched(files, "acme", "routing")
    (before,) = all_watched(files)
    enter_watched(files, "acme", "routing")
    (now,) = all_watched(files)
    note_look(files, before, datetime.now(UTC))
    drop_watched(files, before)
    assert all_watched(files) == [now]


def test_an_entry_that_was_lost_is_made_anew_and_one_that_stands_is_left_alone(
    files: ObjectStore, artifacts: VersionStore
) -> None:
    artifacts.keep_watched(NOW)
    (made,) = all_watched(files)
    note_look(files, made, NOW)
    artifacts.keep_watched(NOW)
    assert [watched.looked_at for watched in all_watched(files)] == [NOW]


def test_a_canary_that_holds_a_forgotten_text_serves_nobody_any_more(
    artifacts: VersionStore, one: str, two: str
) -> None:
    bring(artifacts, one, OFF)
    bring(artifacts, two, CANARY)
    cleaned = erase_from_programs(artifacts, ErasureTarget(frozenset(), frozenset({"two"})), by="marta")
    assert cleaned.withdrawn == (two,)
    assert serving(artifacts) == (one, None)


def test_a_predecessor_that_holds_a_forgotten_text_gives_its_share_back(
    artifacts: VersionStore, one: str, two: str
) -> None:
    bring(artifacts, one, OFF)
    bring(artifacts, two, ON)
    erase_from_programs(artifacts, ErasureTarget(frozenset(), frozenset({"one"})), by="marta")
    assert serving(artifacts) == (two, None)
    assert artifacts.withdrawal(one)
