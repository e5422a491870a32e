from pathlib import Path

import pytest

from autoopt_pipeline.errors import ArtifactStoreUnavailable
from autoopt_pipeline.registry.export import delete, stored_files
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.serving_index import SERVING_INDEX, ServingEntry, entry_paths, read_serving
from autoopt_pipeline.registry.version_store import VersionStore
from tests.support.stored_programs import program, store


@pytest.fixture
def files(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path))


def made(files: ObjectStore, tenant: str = "acme") -> tuple[VersionStore, list[str]]:
    artifacts = VersionStore(files, tenant, "routing")
    texts = ("find it", "sum it up")
    return artifacts, [store(artifacts, program(text, tenant), number) for number, text in enumerate(texts)]


def test_each_transition_replaces_the_entry_of_the_one_before(files: ObjectStore) -> None:
    artifacts, (one, two) = made(files)
    assert read_serving(files) == {}
    artifacts.transition(one, expected=None, actor="run", reason="")
    assert read_serving(files) == {("acme", "routing"): ServingEntry(1, one, 0.9, has_details=False)}
    artifacts.transition(two, expected=one, actor="run", reason="", canary={one: 0.1})
    assert read_serving(files) == {("acme", "routing"): ServingEntry(2, two, 0.9, has_details=True)}
    artifacts.transition(None, expected=two, actor="marta", reason="")
    assert read_serving(files) == {("acme", "routing"): ServingEntry(3, None, None, has_details=True)}
    assert len(files.names(SERVING_INDEX)) == 1


def test_a_writer_that_was_killed_leaves_an_entry_that_the_next_run_makes_up_for(files: ObjectStore) -> None:
    artifacts, (one, two) = made(files)
    artifacts.transition(one, expected=None, actor="run", reason="")
    (stale,) = entry_paths(files, "acme")
    artifacts.transition(two, expected=one, actor="run", reason="")
    files.delete(entry_paths(files, "acme")[0])
    files.create(stale, b"")
    artifacts.index_serving(artifacts.transitions())
    assert len(entry_paths(files, "acme")) == 2
    assert read_serving(files)["acme", "routing"].version == two


def test_an_index_that_cannot_be_written_stops_no_promotion(
    files: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts, (one, _) = made(files)
    create = ObjectStore.create
    refused = []

    def failing(self: ObjectStore, path: str, content: bytes) -> bool:
        if path.startswith(SERVING_INDEX):
            refused.append(path)
            raise ArtifactStoreUnavailable("full", "make room")
        return create(self, path, content)

    monkeypatch.setattr(ObjectStore, "create", failing)
    artifacts.transition(one, expected=None, actor="run", reason="")
    assert refused
    active = artifacts.active()
    assert active
    assert active.version == one


def test_what_somebody_else_wrote_into_the_index_is_passed_over(files: ObjectStore) -> None:
    for name in ("x", "acme.routing.1.v.900.-", "../acme.routing.00000001.v.900.-", "acme.routing.00000001.v.9e9.-"):
        files.create(f"{SERVING_INDEX}/{name.replace('/', '_')}", b"")
    assert read_serving(files) == {}


def test_a_tenants_entries_are_deleted_with_the_tenant(files: ObjectStore) -> None:
    for tenant in ("acme", "acme-eu"):
        artifacts, (one, _) = made(files, tenant)
        artifacts.transition(one, expected=None, actor="run", reason="")
    assert entry_paths(files, "acme")[0] in stored_files(files, "acme")
    delete(files, "acme")
    assert set(read_serving(files)) == {("acme-eu", "routing")}
