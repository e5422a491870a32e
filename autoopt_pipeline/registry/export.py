"""Exports and deletes everything that the registry stores for one tenant.

That is the tenant's own folder, and its entries in the indexes of rollouts and of what serves.
"""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from autoopt_pipeline.errors import ArtifactStoreUnavailable, InvalidArtifact, InvalidExport
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.rollout_records import ROLLOUT_INDEX
from autoopt_pipeline.registry.serving_index import entry_paths
from autoopt_pipeline.tenant_id import safe_name

# These are deleted first, so that a reader meanwhile finds no active version instead of a missing one.
_ORDER = ("active.json", "transitions", "versions")


def stored_files(files: ObjectStore, tenant_id: str) -> list[str]:
    """Return the paths of all files of a tenant in order of deletion: those outside its folder, then by module."""
    own = files.tree(safe_name(tenant_id))
    outside = [f"{ROLLOUT_INDEX}/{module}/{safe_name(tenant_id)}.json" for module in files.names(ROLLOUT_INDEX)]
    outside += entry_paths(files, tenant_id)
    return [
        *(path for path in outside if files.is_link(path) or files.read(path) is not None),
        *sorted(own, key=_rank),
    ]


def export(files: ObjectStore, tenant_id: str, target: Path) -> list[str]:
    """Copy all files of a tenant into a new folder, or into a new zip file if the target's name ends in `.zip`.

    The target is either complete or does not exist. Raises `InvalidArtifact` if a file is a link or its name leads
    outside the target, and `InvalidExport` if the target exists already or cannot be written.
    """
    paths = [path for path in stored_files(files, tenant_id) if not _unfinished(path)]
    for path in paths:
        _check_plain(files, path)
    with _new(target) as unfinished:
        contents = ((path, _content(files, path)) for path in paths)
        (_write_zip if target.suffix == ".zip" else _write_folder)(unfinished, contents)
    return paths


def delete(files: ObjectStore, tenant_id: str) -> list[str]:
    """Delete all files of a tenant, and return their paths. Links are deleted, but not their targets.

    If a call is killed, the next one finishes its work. Transitions are deleted oldest first, so the active version
    does not change meanwhile. Raises `InvalidArtifact` if a folder that tenants share is a link.
    """
    paths = stored_files(files, tenant_id)
    for path in paths:
        if files.is_link(path.rpartition("/")[0]):
            raise _elsewhere(path)
    deleted = [path for path in paths if files.delete(path)]
    files.delete_empty(safe_name(tenant_id))
    return deleted


def _rank(path: str) -> tuple[str, int, str]:
    _, module, kind = [*path.split("/"), "", ""][:3]
    return module, _ORDER.index(kind) if kind in _ORDER else len(_ORDER), path


def _unfinished(path: str) -> bool:
    """Whether a path is the unfinished file of a writer that is at work or was killed."""
    return path.rpartition("/")[2].startswith(".writing-")


def _check_plain(files: ObjectStore, path: str) -> None:
    # Object stores allow keys that are no plain paths.
    if files.is_link(path) or any(
        part in {"", ".", ".."} or not part.isprintable() or "\\" in part for part in path.split("/")
    ):
        raise _elsewhere(path)


def _elsewhere(path: str) -> InvalidArtifact:
    return InvalidArtifact(
        f"{path!r} in the artifact store leads outside the store", "somebody put it there; inspect it and remove it"
    )


def _content(files: ObjectStore, path: str) -> bytes:
    content = files.read(path)
    if content is None:
        raise ArtifactStoreUnavailable(f"{path} was deleted meanwhile", "export again")
    return content


def _write_folder(folder: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    folder.mkdir()
    for path, content in contents:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def _write_zip(file: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(file, "x", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents:
            archive.writestr(path, content)


@contextmanager
def _new(target: Path) -> Generator[Path, None, None]:
    """Yield a path to write to, which is renamed to the target if no error occurs."""
    if os.path.lexists(target):
        raise InvalidExport(f"{target} exists already", "name a new file or folder")
    try:
        # In the target's own folder, because a rename is atomic only within a file system. Only the owner can read it.
        temporary = tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}-")
    except OSError as e:
        raise InvalidExport(f"{target} cannot be written: {e}", "choose a folder that can be written to") from e
    try:
        unfinished = Path(temporary) / "export"
        yield unfinished
        unfinished.rename(target)
    except OSError as e:
        raise InvalidExport(f"{target} cannot be written: {e}", "choose a folder with enough free space") from e
    finally:
        shutil.rmtree(temporary)
