"""The few file operations that versions and transitions need, atomic on every supported store."""

import errno
import os
import random
import tempfile
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from autoopt_pipeline.errors import ArtifactStoreUnavailable, InvalidSettings
from autoopt_pipeline.secrets import protect_address
from autoopt_pipeline.urls import without_secrets


class ObjectStore:
    """Whole files under a root: any fsspec URL, or a local folder."""

    def __init__(self, root_url: str) -> None:
        protect_address(root_url)
        try:
            # Other processes write there too, so a cached listing may be out of date.
            self._fs, root = fsspec.core.url_to_fs(root_url, use_listings_cache=False)
        except ImportError as e:
            raise InvalidSettings(f"artifact root {without_secrets(root_url)!r}: {e}", _to_install(root_url)) from None
        except ValueError as e:
            raise InvalidSettings(
                f"artifact root {without_secrets(root_url)!r}: {e}",
                "set AUTOOPT_ARTIFACTS_URL to a folder or a URL",
            ) from None
        except OSError as e:  # some drivers connect at once
            raise ArtifactStoreUnavailable(
                f"artifact root {without_secrets(root_url)!r}: {e}", "check AUTOOPT_ARTIFACTS_URL"
            ) from None
        self._root = root.rstrip("/")
        self._shown = without_secrets(root_url)
        self._local = isinstance(self._fs, LocalFileSystem)

    @property
    def folder_to_make(self) -> Path | None:
        """The root, if it is a local folder that does not exist yet; the first write makes it."""
        return Path(self._root) if self._local and not Path(self._root).exists() else None

    def read(self, path: str) -> bytes | None:
        """Return the file's content, or None if there is no such file."""
        with self._errors(path):
            try:
                return self._fs.cat_file(self._at(path))
            except FileNotFoundError:
                return None

    def read_many(self, paths: Sequence[str]) -> dict[str, bytes | Exception]:
        """Return content by path, read concurrently if possible. If a file cannot be read, its value is the error."""
        if not self._fs.async_impl:
            return {path: self._read_or_error(path) for path in paths}
        contents = self._fs.cat([self._at(path) for path in paths], on_error="return") if paths else {}
        return {path: contents[self._at(path)] for path in paths}

    def modified(self, path: str) -> datetime:
        """Return when a file was written (UTC), by the store's own clock."""
        with self._errors(path):
            written = self._fs.modified(self._at(path))
            return written.astimezone(UTC) if written.tzinfo else written.replace(tzinfo=UTC)

    def names(self, folder: str) -> list[str]:
        """Return the names of the files and folders directly inside, sorted. Empty if there is no such folder."""
        return [name for name in self.all_names(folder) if not name.startswith(_TEMPORARY)]

    def all_names(self, folder: str) -> list[str]:
        """Like `names`, but include the unfinished files of writers that are at work or were killed."""
        with self._errors(folder):
            try:
                paths = self._fs.ls(self._at(folder), detail=False, refresh=True)
            except FileNotFoundError:
                return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in paths)

    def tree(self, folder: str) -> list[str]:
        """Return the paths of all files below a folder, sorted, including unfinished ones. Links are not followed."""
        if self.is_link(folder):
            return [folder]
        with self._errors(folder):
            try:
                entries = self._fs.ls(self._at(folder), detail=True, refresh=True)
            except FileNotFoundError:
                return []
        paths: list[str] = []
        for entry in entries:
            path = f"{folder}/{entry['name'].rstrip('/').rpartition('/')[2]}"
            paths += self.tree(path) if entry["type"] == "directory" else [path]
        return sorted(paths)

    def is_link(self, path: str) -> bool:
        """Whether a path contains a link, which only a local folder can hold."""
        parts = path.split("/")
        prefixes = (Path(self._root, *parts[:length]) for length in range(1, len(parts) + 1))
        return self._local and any(prefix.is_symlink() for prefix in prefixes)

    def delete_empty(self, folder: str) -> None:
        """Delete a folder and those below it that hold no files. Object stores have no folders."""
        if not self._local:
            return
        with self._errors(folder):
            for path, _, _ in os.walk(self._at(folder), topdown=False):
                if not any(Path(path).iterdir()):
                    Path(path).rmdir()

    def create(self, path: str, content: bytes) -> bool:
        """Write a new file atomically. Return False if it exists already with other content, which stays.

        Raises `InvalidSettings` if the store cannot do this safely, because promotions depend on it.
        """
        if not self._local:
            self._check_exclusive()
        with self._errors(path):
            try:
                if self._local:
                    self._link(path, content)
                else:
                    self._create_in_store(path, content)
            except FileExistsError:
                # This call may have written it: S3's driver repeats a request if the server's answer was lost.
                return self._fs.cat_file(self._at(path)) == content
            return True

    def create_twice(self, path: str) -> bool:
        """Whether the store lets two writers create the same new file, so that the second replaces the first."""
        with self._errors(path):
            first, second = b"first", b"second"
            try:
                self._create_in_store(path, first)  # refused if the driver repeats a request whose answer was lost
                self._create_in_store(path, second)
            except FileExistsError:
                return False
            return self._fs.cat_file(self._at(path)) == second

    def replace(self, path: str, content: bytes) -> None:
        """Write a file atomically, and replace an existing one."""
        with self._errors(path):
            if self._local:
                with self._temporary(path, content) as temporary:
                    Path(temporary).replace(self._at(path))
            else:
                self._fs.pipe_file(self._at(path), content)

    def delete(self, path: str) -> bool:
        """Delete a file. Return False if there is none."""
        with self._errors(path):
            try:
                self._fs.rm_file(self._at(path))
            except FileNotFoundError:
                return False
            return True

    def _link(self, path: str, content: bytes) -> None:
        with self._temporary(path, content) as temporary:
            try:
                os.link(temporary, self._at(path))  # fails if the name is taken, and is atomic
            except OSError as e:
                if e.errno not in _NO_HARD_LINKS:
                    raise
                raise InvalidSettings(
                    f"artifact root {self._shown}: its volume has no hard links ({e.strerror}), like SMB, "
                    "blobfuse or exFAT, and without them two writers could create the same file",
                    "use a local or an NFS volume, or an object store (docs/kubernetes.md)",
                ) from None

    def _create_in_store(self, path: str, content: bytes) -> None:
        """Create a file. Raises FileExistsError if the name is taken.

        S3 answers 409 if two writers create a file at the same time, and expects the request to be repeated.
        """
        for attempt in range(_CONFLICTS + 1):
            try:
                self._fs.pipe_file(self._at(path), content, mode="create")
            except FileExistsError:
                raise
            except Exception as e:
                if attempt == _CONFLICTS or not _is_conflict(e):
                    raise
                time.sleep(0.1 * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            else:
                return

    def _check_exclusive(self) -> None:
        """Check once per process and root that the store creates files exclusively, as every promotion requires."""
        if self._root in _exclusive:
            return
        path = f"{CHECK_FOLDER}/{uuid.uuid4().hex}"
        try:
            if self.create_twice(path):
                raise not_exclusive(self._shown)
        finally:
            self.delete(path)
        _exclusive.add(self._root)

    def _read_or_error(self, path: str) -> bytes | Exception:
        try:
            return self._fs.cat_file(self._at(path))
        except OSError as e:
            return e

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _temporary(self, path: str, content: bytes) -> Generator[str, None, None]:
        folder = Path(self._at(path)).parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=_TEMPORARY)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield name
        finally:
            Path(name).unlink(missing_ok=True)

    @contextmanager
    def _errors(self, path: str) -> Generator[None, None, None]:
        try:
            yield
        except (FileExistsError, InvalidSettings):
            raise
        except Exception as e:  # drivers raise their own errors, such as S3's for a server that is down
            # The root of some stores is a URL with a password, which drivers quote.
            shown = without_secrets(self._root)
            error = ArtifactStoreUnavailable(
                f"artifact store {shown}: {path}: {str(e).replace(self._root, shown)}",
                "check AUTOOPT_ARTIFACTS_URL and its permissions",
            )
            if shown != self._root:
                raise error from None
            raise error from e


_TEMPORARY = ".writing-"

# Holds the files that test whether a store can be written. No tenant's folder can have this name.
CHECK_FOLDER = "_doctor"

# Further tries after S3's 409. The conflict is over once the other writer is done.
_CONFLICTS = 5

# Errors of file systems without hard links. On FAT, Linux reports EPERM; missing permissions are EACCES.
_NO_HARD_LINKS = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EMLINK})

# Roots that passed the check for exclusive creation.
_exclusive: set[str] = set()


def _to_install(root_url: str) -> str:
    """Return how to install the package with a store's driver."""
    command = (
        "pip install 'autoopt-pipeline[s3]'" if root_url.startswith(("s3://", "s3a://")) else "install the package"
    )
    return f"{command}, wherever runs are executed, programs are served and commands are given"


def not_exclusive(root: str) -> InvalidSettings:
    """The error for a store that ignores conditional writes."""
    return InvalidSettings(
        f"artifact root {root}: two writers can create the same file, so a promotion could be lost",
        "use a store with conditional writes (If-None-Match): S3, GCS, Azure Blob, MinIO, or a local folder",
    )


def _is_conflict(e: BaseException | None) -> bool:
    while e is not None:
        if "ConditionalRequestConflict" in str(e):
            return True
        e = e.__cause__ or e.__context__
    return False
