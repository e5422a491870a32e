"""Everything that is stored of one tenant: taking a copy of it, and deleting it.

That is the tenant's own folder, and the marks of modules that are watched.
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
from autoopt_pipeline.tenant_id import safe_name

# What goes first of a module, so that a reader in between finds nothing active rather than what is gone.
_ORDER = ("active.json", "transitions", "versions")


def stored_files(files: ObjectStore, tenant_id: str) -> list[str]:
    """Paths of all files of a tenant in the order of deletion: what stands outside of its folder, then by module."""
    own = files.tree(safe_name(tenant_id))
    outside = [f"{ROLLOUT_INDEX}/{module}/{safe_name(tenant_id)}.json" for module in files.names(ROLLOUT_INDEX)]
    return [
        *(path for path in outside if files.is_link(path) or files.read(path) is not None),
        *sorted(own, key=_rank),
    ]


def export(files: ObjectStore, tenant_id: str, target: Path) -> list[str]:
    """Copy all files of a tenant into a new folder, or a new zip file where the target's name ends so.

    Links are not followed but refused, and so are names that lead elsewhere. The target is complete or not there.
    Raises `InvalidExport` when it exists already, or cannot be written.
    """
    paths = [path for path in stored_files(files, tenant_id) if not _unfinished(path)]
    for path in paths:
        _check_plain(files, path)
    with _new(target) as unfinished:
        contents = ((path, _content(files, path)) for path in paths)
        (_write_zip if target.suffix == ".zip" else _write_folder)(unfinished, contents)
    return paths


def delete(files: ObjectStore, tenant_id: str) -> list[str]:
    """Delete all files of a tenant, links themselves included and not what they lead to; return their paths.

    A call that died is finished by the next one. Moves go oldest first, so what is active does not change meanwhile.
    Raises `InvalidArtifact` where a folder that tenants share is a link.
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
    """Whether a path is the unfinished file of a writer that is at work or has died."""
    return path.rpartition("/")[2].startswith(".writing-")


def _check_plain(files: ObjectStore, path: str) -> None:
    # Object stores allow keys that are no plain paths.
    if files.is_link(path) or any(
        part in {"", ".", ".."} or not part.isprintable() or "\\" in part for part in path.split("/")
    ):
        raise _elsewhere(path)


def _elsewhere(path: str) -> InvalidArtifact:
    return InvalidArtifact(
        f"{path!r} in the artifact store leads elsewhere", "it was put there by hand; look at it, and remove it"
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
    """A path to write to, which becomes the target when all went well."""
    if os.path.lexists(target):
        raise InvalidExport(f"{target} exists already", "name a new file or folder")
    try:
        # Beside the target, for a rename is whole only within a file system. Only its owner can look into it.
        beside = tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}-")
    except OSError as e:
        raise InvalidExport(f"{target} cannot be written: {e}", "name a place that can") from e
    try:
        unfinished = Path(beside) / "export"
        yield unfinished
        unfinished.rename(target)
    except OSError as e:
        raise InvalidExport(f"{target} cannot be written: {e}", "name a place that can, with room enough") from e
    finally:
        shutil.rmtree(beside)
