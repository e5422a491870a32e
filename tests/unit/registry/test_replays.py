"""What a model was asked, and the results that runs leave for the quality sensor."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import StoredAnswer
from autoopt_pipeline.registry.replays import (
    ModelReplay,
    ReplayExample,
    ReplaySet,
    drop_replay,
    report_replay,
    reported_replays,
)
from autoopt_pipeline.registry.version_store import VersionStore

AT = datetime(2026, 11, 20, tzinfo=UTC)


def result(tenant: str = "org:acme", module: str = "routing", **fields: object) -> ModelReplay:
    known = {"version": None, "at": AT, "answered_at": AT, "same_at": AT, "lm": "m", "lm_before": "m", "p": 1.0}
    counts = {"asked": 24, "changed": 0, "repeated": 0, "returned": 0}
    return ModelReplay.model_validate({"tenant_id": tenant, "module": module, **known, **counts, **fields})


@pytest.fixture
def files(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path))


def test_a_result_is_read_until_it_is_dropped_and_a_newer_one_is_never_lost(files: ObjectStore) -> None:
    first, newer = result(), result(at=AT + timedelta(hours=1))
    report_replay(files, first)
    report_replay(files, result(module="unified"))
    assert {each.module for each in reported_replays(files)} == {"routing", "unified"}
    report_replay(files, newer)
    drop_replay(files, first)
    assert newer in reported_replays(files)
    drop_replay(files, newer)
    assert [each.module for each in reported_replays(files)] == ["unified"]


def test_damaged_and_foreign_results_are_left_out(files: ObjectStore) -> None:
    files.replace("_quality/replays/x.routing.json", b"{}")
    files.replace("_quality/replays/y.routing.json", result("another").model_dump_json().encode())
    assert reported_replays(files) == []


def test_erasure_deletes_requests_and_every_set_that_cannot_be_read(files: ObjectStore) -> None:
    artifacts = VersionStore(files, "acme", "routing")
    answer = StoredAnswer(values={"agent": "a"}, confidence=0.9)
    asked = tuple(
        ReplayExample(span_id=text, trace_id=text, inputs={"query": text}, answer=answer) for text in ("one", "two")
    )
    for version in (None, "v1"):
        artifacts.keep_replay_set(
            ReplaySet(version=version, program=None, lm="m", answered_at=AT, same_at=AT, examples=asked)
        )
    files.replace("acme/routing/replays/v2.json", b'{"examples": "one')
    artifacts.erase_replayed(lambda example: example.trace_id == "one")
    kept = [artifacts.replay_set(version) for version in (None, "v1", "v2")]
    assert [each and [example.trace_id for example in each.examples] for each in kept] == [["two"], ["two"], None]
