"""Taking away and deleting what is stored of a tenant."""

import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autoopt_pipeline.errors import ArtifactStoreUnavailable, InvalidArtifact, InvalidExport
from autoopt_pipeline.registry.export import delete, export, stored_files
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import LedgerEntry
from autoopt_pipeline.registry.version_store import VersionStore
from tests.support.stored_programs import save

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store in which `acme` and `acme:eu` have two versions each and are watched."""
    root = tmp_path / "store"
    for tenant in ("acme", "acme:eu"):
        fill(ObjectStore(str(root)), tenant)
    return root


def fill(files: ObjectStore, tenant: str) -> None:
    artifacts = VersionStore(files, tenant, "routing")
    one, two = save(artifacts, "one", tenant=tenant), save(artifacts, "two", tenant=tenant)
    artifacts.transition(one, expected=None, actor="t", reason="")
    artifacts.transition(two, expected=one, actor="t", reason="")
    artifacts.charge(
        LedgerEntry(sequence=1, at=AT, candidate_digest="c", holdout_digest="h", incumbent=None, alpha=0.03)
    )
    artifacts.keep_indexed(AT)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def own(root: Path, safe_name: str) -> dict[str, bytes]:
    """What the store holds of one tenant."""
    return {
        path: content
        for path, content in contents(root).items()
        if path.startswith((f"{safe_name}/", f"_serving/{safe_name}.")) or path == f"_rollouts/routing/{safe_name}.json"
    }


@pytest.mark.parametrize("target", ["out", "out.zip"])
def test_an_export_holds_all_of_the_tenant_and_nothing_of_another(root: Path, tmp_path: Path, target: str) -> None:
    (root / "acme" / "routing" / "versions" / ".writing-dead").write_text("half")
    exported = export(ObjectStore(str(root)), "acme", tmp_path / target)
    if target.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / target) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
    else:
        found = contents(tmp_path / target)
    whole = {path: content for path, content in own(root, "acme").items() if ".writing-" not in path}
    assert found == whole
    assert sorted(exported) == sorted(whole)
    assert len(whole) == 10
    assert {path.name for path in tmp_path.iterdir()} == {"store", target}


@pytest.mark.parametrize("target", ["out", "out.zip"])
def test_an_export_overwrites_nothing_and_goes_through_no_link(root: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / target).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidExport, match="exists already"):
        export(ObjectStore(str(root)), "acme", tmp_path / target)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def _link(path: Path, to: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


@pytest.mark.parametrize("where", ["acme/routing/versions/x", "acme/modality", "_rollouts/modality"])
def test_a_link_in_the_store_is_not_followed_but_named(root: Path, tmp_path: Path, where: str) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "acme.json").write_text("a secret")
    _link(root / where, secret)
    with pytest.raises(InvalidArtifact, match=where):
        export(ObjectStore(str(root)), "acme", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tenants_folder_that_is_a_link_is_not_followed_either(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("a secret")
    _link(root / "linked", tmp_path / "secret")
    with pytest.raises(InvalidArtifact, match="linked"):
        export(ObjectStore(str(root)), "linked", tmp_path / "out")
    delete(ObjectStore(str(root)), "linked")
    assert (tmp_path / "secret" / "key").exists()


def test_nothing_is_deleted_through_a_folder_of_rollouts_that_is_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "acme.json").write_text("a secret")
    _link(root / "_rollouts" / "modality", tmp_path / "secret")
    before = contents(root)
    with pytest.raises(InvalidArtifact, match="_rollouts/modality"):
        delete(ObjectStore(str(root)), "acme")
    assert contents(root) == before
    assert (tmp_path / "secret" / "acme.json").exists()


def test_a_name_that_leads_out_of_the_target_is_refused(tmp_path: Path) -> None:
    files = ObjectStore("memory://autoopt-archive-names")
    fill(files, "acme")
    files._fs.store["/autoopt-archive-names/acme/routing/versions/.."] = files._fs.open(
        "memory://autoopt-archive-names/x", "wb"
    )
    with pytest.raises(InvalidArtifact, match="leads outside the store"):
        export(files, "acme", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_nothing_behind(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(files: ObjectStore, path: str) -> bytes | None:
        if path.endswith("program.json"):
            raise ArtifactStoreUnavailable("down", "try again")
        return read(files, path)

    read = ObjectStore.read
    monkeypatch.setattr(ObjectStore, "read", unreadable)
    with pytest.raises(ArtifactStoreUnavailable):
        export(ObjectStore(str(root)), "acme", tmp_path / "out.zip")
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


def test_deleting_takes_all_of_the_tenant_and_nothing_of_another(root: Path) -> None:
    (root / "acme" / "routing" / "versions" / ".writing-dead").write_text("half")
    before = contents(root)
    mine = own(root, "acme")
    assert sorted(delete(ObjectStore(str(root)), "acme")) == sorted(mine)
    assert contents(root) == {path: content for path, content in before.items() if path not in mine}
    assert not (root / "acme").exists()
    assert delete(ObjectStore(str(root)), "acme") == []


def test_a_link_is_deleted_itself_and_not_what_it_leads_to(root: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    _link(root / "acme" / "modality", tmp_path / "kept")
    assert "acme/modality" in delete(ObjectStore(str(root)), "acme")
    assert (tmp_path / "kept" / "file").read_text() == "kept"
    assert not (root / "acme").exists()


@pytest.mark.parametrize("survives", range(9))
def test_a_deletion_that_died_anywhere_is_finished_by_the_next_and_never_activates_what_is_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    files, artifacts = ObjectStore(str(root)), VersionStore(ObjectStore(str(root)), "acme", "routing")
    before = artifacts.active()
    assert before is not None
    really, done = ObjectStore.delete, []

    def dies(self: ObjectStore, path: str) -> bool:
        if len(done) == survives:
            raise ArtifactStoreUnavailable("dead", "start again")
        done.append(path)
        return really(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "delete", dies)
        with pytest.raises(ArtifactStoreUnavailable):
            delete(files, "acme")
    active = artifacts.active()
    assert active is None or (active.version == before.version and artifacts.load(active.version))
    delete(files, "acme")
    assert stored_files(files, "acme") == []
    assert own(root, "acme") == {}


def test_object_stores_are_exported_and_emptied_the_same_way(tmp_path: Path) -> None:
    files = ObjectStore("memory://autoopt-archive")
    for tenant in ("acme", "acme:eu"):
        fill(files, tenant)
    assert len(export(files, "acme", tmp_path / "out.zip")) == 10
    assert len(delete(files, "acme")) == 10
    assert stored_files(files, "acme") == []
    assert len(stored_files(files, "acme:eu")) == 10
