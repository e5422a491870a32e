"""What transitions say, for every history that people and runs can make."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.promotion_blocks import block_reason_from_history
from autoopt_pipeline.registry.records import Manifest, Transition
from autoopt_pipeline.registry.transitions import pointer_after, rollback_stack, rolled_back
from autoopt_pipeline.registry.version_store import VersionStore
from tests.support.stored_programs import program, save

AT = datetime(2026, 1, 1, tzinfo=UTC)


def moved(*path: str | None) -> list[Transition]:
    """The transitions from the baseline along a path of versions."""
    return [
        Transition(
            sequence=number + 1,
            at=AT + timedelta(days=number),
            actor="marta",
            reason="it annoys people",
            from_version=path[number - 1] if number else None,
            to_version=to,
        )
        for number, to in enumerate(path)
    ]


histories = st.lists(st.sampled_from([None, "a", "b", "c", "d"]), max_size=20).map(lambda path: moved(*path))


@pytest.mark.parametrize(
    ("path", "stands", "left"),
    [
        ([], [None], set()),
        (["a", "b"], [None, "a", "b"], set()),
        (["a", None], [None], {"a"}),
        (["a", "b", "a"], [None, "a"], {"b"}),
        (["a", "b", "c", "a"], [None, "a"], {"b", "c"}),
        (["a", "b", "a", "b"], [None, "a", "b"], set()),
        (["a", "b", "a", "c"], [None, "a", "c"], {"b"}),
        (["a", "a"], [None, "a"], set()),
    ],
)
def test_going_back_leaves_behind_what_came_after(
    path: list[str | None], stands: list[str | None], left: set[str]
) -> None:
    assert list(rollback_stack(moved(*path))) == stands
    assert set(rolled_back(moved(*path))) == left


def test_the_pointer_says_whether_the_last_move_went_back_and_from_what() -> None:
    back = pointer_after(moved("a", "b", "c", "a"))
    assert (back.version, back.sequence) == ("a", 4)
    assert back.rolled_back
    assert set(back.rolled_back.versions) == {"b", "c"}
    assert (back.rolled_back.at, back.rolled_back.actor, back.rolled_back.reason) == (
        AT + timedelta(days=3),
        "marta",
        "it annoys people",
    )
    assert pointer_after(moved("a", "b", "a", "c")).rolled_back is None  # what serves now was not gone back to
    assert pointer_after(moved("a", "b")).rolled_back is None


@given(histories)
def test_the_last_version_that_stands_is_the_active_one(transitions: list[Transition]) -> None:
    assert rollback_stack(transitions)[-1] == (transitions[-1].to_version if transitions else None)


@given(histories)
def test_every_version_that_ever_was_active_either_stands_or_was_rolled_back(transitions: list[Transition]) -> None:
    stands, left = set(rollback_stack(transitions)) - {None}, set(rolled_back(transitions))
    assert stands | left == {transition.to_version for transition in transitions} - {None}
    assert stands & left == set()


@given(histories)
def test_rolling_back_again_and_again_ends_at_the_baseline_and_brings_nothing_back(
    transitions: list[Transition],
) -> None:
    before = set(rolled_back(transitions))
    steps = 0
    while len(rollback_stack(transitions)) > 1:
        path = [*(transition.to_version for transition in transitions), rollback_stack(transitions)[-2]]
        transitions = moved(*path)
        assert before <= set(rolled_back(transitions))
        before = set(rolled_back(transitions))
        steps += 1
    assert steps <= 4
    assert rollback_stack(transitions) == (None,)


def manifests(tmp_path: Path, **programs: str) -> list[Manifest]:
    """Versions of these names, with programs of these texts."""
    artifacts = VersionStore(ObjectStore(str(tmp_path)), "acme:eu", "routing")
    save(artifacts, "any")
    (like,) = artifacts.versions()
    return [
        like.model_copy(update={"version": version, "program_sha256": program(text).digest})
        for version, text in programs.items()
    ]


def test_the_same_program_as_one_that_was_rolled_back_is_blocked_under_any_name(tmp_path: Path) -> None:
    stored = manifests(tmp_path, a="one", b="two", later="two")
    why = block_reason_from_history(program("two").digest, stored, moved("a", "b", "a"))
    assert why is not None
    assert "b, on 2026-01-03 by marta (it annoys people)" in why
    assert block_reason_from_history(program("one").digest, stored, moved("a", "b", "a")) is None
    assert block_reason_from_history(program("three").digest, stored, moved("a", "b", "a")) is None


def test_what_a_person_promoted_again_is_no_longer_blocked(tmp_path: Path) -> None:
    stored = manifests(tmp_path, a="one", b="two", later="two")
    digest = program("two").digest
    assert block_reason_from_history(digest, stored, moved("a", "b", "a", "b", "c")) is None
    assert block_reason_from_history(digest, stored, moved("a", "b", "a", "later", "c")) is None
    assert block_reason_from_history(digest, stored, moved("a", "b", "a", "later", "a")) is not None


def test_what_was_replaced_by_something_better_is_not_blocked(tmp_path: Path) -> None:
    stored = manifests(tmp_path, a="one", b="two")
    assert block_reason_from_history(program("one").digest, stored, moved("a", "b")) is None
