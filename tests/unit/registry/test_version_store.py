import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autoopt_pipeline.errors import ArtifactStoreUnavailable, InvalidArtifact, InvalidSettings, PromotionConflict
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import DrawnTrace, LedgerEntry, StoredAnswer, Transition
from autoopt_pipeline.registry.rollout_records import RolloutDraw, disagreements, indexed_rollouts, record_analysis
from autoopt_pipeline.registry.version_store import VersionStore, modules_of
from tests.support.sequential_tests import made_step
from tests.support.stored_programs import program, save

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def artifacts(tmp_path: Path) -> VersionStore:
    return VersionStore(ObjectStore(str(tmp_path)), "acme:eu", "routing")


def folder(tmp_path: Path) -> Path:
    return next(tmp_path.glob("acme-eu--*/routing"))


def test_a_version_is_read_back_as_it_was_saved(artifacts: VersionStore) -> None:
    version = save(artifacts, "one")
    assert artifacts.load(version) == program("one")
    assert [manifest.version for manifest in artifacts.versions()] == [version]
    assert artifacts.active() is None


def test_moves_lead_from_version_to_version_and_are_recorded(artifacts: VersionStore, tmp_path: Path) -> None:
    one, two = save(artifacts, "one"), save(artifacts, "two")
    artifacts.transition(one, expected=None, actor="run 1", reason="proven better")
    artifacts.transition(two, expected=one, actor="run 2", reason="proven better")
    artifacts.transition(one, expected=two, actor="marta", reason="two is slow")
    active = artifacts.active()
    assert active is not None
    assert active.version == one
    transitions = [json.loads(path.read_text()) for path in sorted((folder(tmp_path) / "transitions").iterdir())]
    assert [
        (transition["from_version"], transition["to_version"], transition["actor"]) for transition in transitions
    ] == [
        (None, one, "run 1"),
        (one, two, "run 2"),
        (two, one, "marta"),
    ]


def test_a_move_from_a_version_that_is_no_longer_active_is_refused(artifacts: VersionStore) -> None:
    one, two = save(artifacts, "one"), save(artifacts, "two")
    artifacts.transition(one, expected=None, actor="a", reason="")
    with pytest.raises(PromotionConflict, match="no longer the baseline"):
        artifacts.transition(two, expected=None, actor="b", reason="")
    active = artifacts.active()
    assert active is not None
    assert active.version == one


def test_of_many_concurrent_promotions_exactly_one_wins(tmp_path: Path) -> None:
    artifacts = VersionStore(ObjectStore(str(tmp_path)), "acme:eu", "routing")
    versions = [save(artifacts, f"candidate {i}") for i in range(8)]
    won: list[str] = []
    barrier = threading.Barrier(len(versions))

    def promote(version: str) -> None:
        barrier.wait()
        try:
            VersionStore(ObjectStore(str(tmp_path)), "acme:eu", "routing").transition(
                version, expected=None, actor="t", reason=""
            )
            won.append(version)
        except PromotionConflict:
            pass

    threads = [threading.Thread(target=promote, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    active = artifacts.active()
    assert active is not None
    assert won == [active.version]


def test_a_pointer_that_a_dead_writer_left_behind_is_mended(artifacts: VersionStore, tmp_path: Path) -> None:
    one, two = save(artifacts, "one"), save(artifacts, "two")
    artifacts.transition(one, expected=None, actor="a", reason="")
    before = (folder(tmp_path) / "active.json").read_bytes()
    artifacts.transition(two, expected=one, actor="a", reason="")
    (folder(tmp_path) / "active.json").write_bytes(before)
    active = artifacts.active()
    assert active is not None
    assert active.version == two
    assert json.loads((folder(tmp_path) / "active.json").read_text())["version"] == two


def test_the_baseline_can_be_gone_back_to_and_left_again(artifacts: VersionStore, tmp_path: Path) -> None:
    one, two = save(artifacts, "one"), save(artifacts, "two")
    artifacts.transition(one, expected=None, actor="run 1", reason="proven better")
    before = (folder(tmp_path) / "active.json").read_bytes()
    artifacts.transition(None, expected=one, actor="marta", reason="it annoys people")
    told = json.loads((folder(tmp_path) / "active.json").read_text())
    assert (told["version"], told["sequence"], told["canary"]) == (None, 2, None)
    assert (told["rolled_back"]["versions"], told["rolled_back"]["actor"]) == ([one], "marta")
    (folder(tmp_path) / "active.json").write_bytes(before)  # the writer died before it
    assert artifacts.active() is None
    assert json.loads((folder(tmp_path) / "active.json").read_text()) == told
    with pytest.raises(PromotionConflict):
        artifacts.transition(two, expected=one, actor="run 2", reason="proven better")
    artifacts.transition(two, expected=None, actor="run 3", reason="proven better")
    active = artifacts.active()
    assert active is not None
    assert (active.version, active.sequence) == (two, 3)


def test_a_survey_lists_what_can_be_read_and_names_what_is_damaged(artifacts: VersionStore, tmp_path: Path) -> None:
    one, two = save(artifacts, "one"), save(artifacts, "two")
    (folder(tmp_path) / "versions" / one / "manifest.json").write_bytes(b"\xff")
    manifests, damaged = artifacts.list_versions()
    assert [manifest.version for manifest in manifests] == [two]
    assert list(damaged) == [one]
    with pytest.raises(InvalidArtifact, match=f"{one}/manifest.json"):
        artifacts.versions()


def test_a_version_without_its_manifest_is_not_there(artifacts: VersionStore, tmp_path: Path) -> None:
    version = save(artifacts, "one")
    (folder(tmp_path) / "versions" / version / "manifest.json").unlink()
    assert artifacts.versions() == []
    with pytest.raises(InvalidArtifact, match="does not exist"):
        artifacts.transition(version, expected=None, actor="a", reason="")


def test_a_damaged_program_is_refused(artifacts: VersionStore, tmp_path: Path) -> None:
    version = save(artifacts, "one")
    path = folder(tmp_path) / "versions" / version / "program.json"
    path.write_bytes(path.read_bytes().replace(b"one", b"two"))
    with pytest.raises(InvalidArtifact, match="damaged"):
        artifacts.load(version)


def test_another_tenants_program_is_refused(artifacts: VersionStore) -> None:
    version = save(artifacts, "one", tenant="rival")
    with pytest.raises(InvalidArtifact, match="belongs to rival/routing"):
        artifacts.load(version)


def test_a_version_is_never_overwritten(artifacts: VersionStore) -> None:
    version = save(artifacts, "one")
    (manifest,) = artifacts.versions()
    artifacts.save(program("two"), manifest.model_copy(update={"reason": "another"}))
    assert artifacts.load(version) == program("one")
    assert artifacts.versions() == [manifest]


def test_a_place_in_the_ledger_is_taken_once(artifacts: VersionStore) -> None:
    entry = LedgerEntry(sequence=1, at=AT, candidate_digest="c", holdout_digest="h", incumbent=None, alpha=0.03)
    assert artifacts.charge(entry)
    assert not artifacts.charge(entry.model_copy(update={"candidate_digest": "other"}))
    assert artifacts.ledger() == [entry]


def test_no_temporary_file_is_left_or_listed(artifacts: VersionStore, tmp_path: Path) -> None:
    save(artifacts, "one")
    assert not list(tmp_path.rglob(".writing-*"))


def test_other_stores_work_the_same_way() -> None:
    artifacts = VersionStore(ObjectStore("memory://autoopt-test"), "acme:eu", "routing")
    one, two = save(artifacts, "one"), save(artifacts, "two")
    artifacts.transition(one, expected=None, actor="a", reason="")
    with pytest.raises(PromotionConflict):
        artifacts.transition(two, expected=None, actor="b", reason="")
    assert {manifest.version for manifest in artifacts.versions()} == {one, two}


def test_an_unknown_kind_of_root_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="AUTOOPT_ARTIFACTS_URL"):
        ObjectStore("nonsense://somewhere")


def test_a_root_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactStoreUnavailable, match="AUTOOPT_ARTIFACTS_URL"):
        save(VersionStore(ObjectStore(str(tmp_path / "file")), "acme:eu", "routing"), "one")


def test_a_withdrawn_version_keeps_its_manifest_and_can_neither_be_loaded_nor_come_back(
    artifacts: VersionStore, tmp_path: Path
) -> None:
    one, two = save(artifacts, "very private"), save(artifacts, "two")
    (folder(tmp_path) / "versions" / one / ".writing-dead").write_text("very private")
    artifacts.withdraw(one, actor="marta", reason="a trace was forgotten")
    assert {manifest.version for manifest in artifacts.versions()} == {one, two}
    withdrawal = artifacts.withdrawal(one)
    assert withdrawal is not None
    assert (withdrawal.actor, withdrawal.reason) == ("marta", "a trace was forgotten")
    assert artifacts.withdrawal(two) is None
    for attempt in (
        lambda: artifacts.load(one),
        lambda: artifacts.transition(one, expected=None, actor="t", reason=""),
        lambda: save(artifacts, "very private"),
    ):
        with pytest.raises(InvalidArtifact, match=r"withdrawn on .*: a trace was forgotten"):
            attempt()
    assert not any(b"very private" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_withdrawing_again_finishes_what_a_dead_writer_left_and_keeps_the_first_reason(
    artifacts: VersionStore, tmp_path: Path
) -> None:
    version = save(artifacts, "one")
    artifacts.withdraw(version, actor="marta", reason="first")
    (folder(tmp_path) / "versions" / version / "program.json").write_text("left over")
    assert [text for _, text in artifacts.iter_program_texts()] == ["left over"]
    artifacts.withdraw(version, actor="t", reason="second")
    assert list(artifacts.iter_program_texts()) == []
    withdrawal = artifacts.withdrawal(version)
    assert withdrawal is not None
    assert withdrawal.reason == "first"


def test_a_tenants_modules_are_those_with_artifacts(artifacts: VersionStore, tmp_path: Path) -> None:
    save(artifacts, "one")
    found = modules_of(ObjectStore(str(tmp_path)), "acme:eu")
    assert [(each.tenant_id, each.module) for each in found] == [("acme:eu", "routing")]
    assert modules_of(ObjectStore(str(tmp_path)), "acme") == []


def test_answers_to_an_erased_trace_are_deleted_from_whatever_drew_it(artifacts: VersionStore) -> None:
    said, differently = (StoredAnswer(values={"agent": f"the secret {n}"}, confidence=0.9) for n in ("one", "two"))
    drawn = [
        DrawnTrace(span_id=f"s{n}", trace_id=f"t{n}", time=AT, alike=False, incumbent=said, candidate=differently)
        for n in range(2)
    ]
    rollout = begun(artifacts)
    artifacts.add_rollout_draw(rollout, draw(1, drawn))
    step = made_step("v", verdict="awaiting_reviews", drawn=drawn, at=AT)
    artifacts.add_sequential_test_step(step)
    artifacts.erase_drawn(["t1"])
    (kept,) = artifacts.sequential_test_steps()
    assert [trace.incumbent.values for trace in kept.drawn] == [{"agent": "the secret one"}, None]
    assert kept.drawn[1].candidate == StoredAnswer(values=None, confidence=None)
    assert (kept.drawn[1].span_id, kept.verdict) == ("s1", "awaiting_reviews")
    draws = artifacts.rollout_draws(rollout)
    assert [trace.span_id for trace in draws[0].drawn] == ["s0", "s1"]
    assert [trace.span_id for trace in disagreements(draws)] == ["s0"]  # nobody is asked about the erased one
    assert "secret two" not in draws[0].drawn[1].model_dump_json()


def test_a_draw_belongs_to_its_rollout_and_a_place_is_taken_once(artifacts: VersionStore) -> None:
    first = begun(artifacts)
    assert artifacts.add_rollout_draw(first, draw(1))
    assert not artifacts.add_rollout_draw(first, draw(1, attempt="another run"))
    assert artifacts.add_rollout_draw(first, draw(2))
    assert [each.attempt for each in artifacts.rollout_draws(first)] == ["r", "r"]
    assert artifacts.rollout_draws(begun(artifacts)) == []


def test_a_draw_lets_the_monitor_analyze_the_rollout_at_once(artifacts: VersionStore, tmp_path: Path) -> None:
    rollout, files = begun(artifacts), ObjectStore(str(tmp_path))
    (entry,) = indexed_rollouts(files)
    record_analysis(files, entry, AT)
    artifacts.add_rollout_draw(rollout, draw(1))
    (entry,) = indexed_rollouts(files)
    assert (entry.at, entry.analyzed_at) == (rollout.at, None)


def begun(artifacts: VersionStore) -> Transition:
    """Another rollout of the same version, beside the baseline."""
    last = artifacts.last_transition()
    version = last.to_version if last else save(artifacts, "one")
    expected = last.to_version if last else None
    return artifacts.transition(version, expected=expected, actor="t", reason="", canary={"baseline": 0.1})


def draw(sequence: int, drawn: Sequence[DrawnTrace] = (), *, attempt: str = "r") -> RolloutDraw:
    return RolloutDraw(sequence=sequence, at=AT, attempt=attempt, lm="stand-in", seen=[], drawn=list(drawn))
