"""What the registry knew of a module at an earlier moment."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.past_versions import copy_as_of
from autoopt_pipeline.registry.records import LedgerEntry
from autoopt_pipeline.registry.version_store import VersionStore
from tests.support.sequential_tests import made_step
from tests.support.stored_programs import AT, made_program, manifest_of

OLD, NEW = "20260101T000000Z-aaaaaaaa", "20260105T000000Z-bbbbbbbb"


class Days:
    """A store in which things happen on a day."""

    def __init__(self, files: ObjectStore) -> None:
        self.now = AT
        self.store = VersionStore(files, "acme", "routing", clock=lambda: self.now)

    def on(self, day: int) -> VersionStore:
        self.now = day_of(day)
        return self.store

    def make(self, version: str, day: int, demo: str) -> None:
        program = made_program("acme", demos=[demo])
        self.on(day).save(program, manifest_of(program, version, at=day_of(day)))


def day_of(day: int) -> datetime:
    return AT + timedelta(days=day)


@pytest.fixture
def files(tmp_path: Path) -> ObjectStore:
    """A version that was active from day 1 on, a newer one from day 5 on, and tests on days 2 and 6."""
    files = ObjectStore(str(tmp_path / "stored"))
    days = Days(files)
    days.make(OLD, 0, "find it")
    days.on(1).transition(OLD, expected=None, actor="run r", reason="proven")
    days.make(NEW, 4, "sum it up")
    days.on(5).transition(NEW, expected=OLD, actor="run s", reason="proven")
    for sequence, day in enumerate((2, 6), 1):
        entry = LedgerEntry(
            sequence=sequence, at=day_of(day), candidate_digest="c", holdout_digest="h", incumbent=OLD, alpha=0.01
        )
        assert days.store.charge(entry)
        step = made_step(NEW, incumbent=OLD, sequence=sequence)
        assert days.store.add_sequential_test_step(step.model_copy(update={"at": day_of(day)}))
    days.on(6).decline(OLD, actor="ann", reason="no")
    return files


def as_of(files: ObjectStore, folder: Path, day: int) -> VersionStore:
    target = ObjectStore(str(folder))
    copy_as_of(files, target, "acme", "routing", day_of(day))
    return VersionStore(target, "acme", "routing")


def test_a_copy_has_what_was_there_then(files: ObjectStore, tmp_path: Path) -> None:
    before = as_of(files, tmp_path / "before", -1)
    assert (before.active(), before.versions(), before.ledger()) == (None, [], [])

    then = as_of(files, tmp_path / "then", 3)
    active = then.active()
    assert active
    assert active.version == OLD
    assert then.load(OLD) == VersionStore(files, "acme", "routing").load(OLD)
    assert [manifest.version for manifest in then.versions()] == [OLD]
    assert (len(then.ledger()), len(then.sequential_test_steps()), then.declined(OLD)) == (1, 1, None)

    now = as_of(files, tmp_path / "now", 7)
    assert [each.to_version for each in now.transitions()] == [OLD, NEW]
    assert (len(now.ledger()), len(now.sequential_test_steps())) == (2, 2)
    assert now.declined(OLD)


def test_the_text_of_a_withdrawn_version_is_not_copied(files: ObjectStore, tmp_path: Path) -> None:
    """Even where it was withdrawn later: its text must not be used again."""
    days = Days(files)
    days.on(8).withdraw(OLD, actor="ann", reason="erased")
    then = as_of(files, tmp_path / "then", 3)
    with pytest.raises(InvalidArtifact, match="withdrawn"):
        then.load(OLD)
    assert list(then.iter_program_texts()) == []
