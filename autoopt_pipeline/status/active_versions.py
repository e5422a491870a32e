"""Which version of each module serves: from its own files, or of all tenants from the index of names."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.evaluation.sequential_test_log import OPEN
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import PASSED, Manifest, Pointer, Rollback, Verdict, time_of_version
from autoopt_pipeline.registry.serving_index import ServingEntry, read_serving
from autoopt_pipeline.registry.version_store import read_manifests, read_pointers
from autoopt_pipeline.run_history.outcomes import ModuleKey
from autoopt_pipeline.scheduling.conditions import Attempts
from autoopt_pipeline.tenant_id import safe_name


@dataclass(frozen=True)
class ActiveVersion:
    """The version that serves, None for the baseline, with its score on held-out traces (0 to 1).

    `manifest` is None where it was not read, and `error` says why a file could not be read. `rolled_back` is the
    rollback that made the version serve, if any.
    """

    version: str | None = None
    score: float | None = None
    manifest: Manifest | None = None
    rolled_back: Rollback | None = None
    has_canary: bool = False
    error: str | None = None


NEVER_PROMOTED = ActiveVersion()


def verdict_on_active(manifest: Manifest) -> str:
    """The verdict on an active version: if it waited for approval or for proof, it has received that."""
    if manifest.verdict in PASSED:
        return "approved"
    return Verdict.PROMOTED.value if manifest.verdict in OPEN else manifest.verdict


def read_active(files: ObjectStore, keys: Collection[ModuleKey]) -> dict[ModuleKey, ActiveVersion]:
    """Read two files for each module. Modules that were never promoted are left out."""
    pointers = read_pointers(files, keys)
    versions = {key: pointer.version for key, pointer in pointers.items() if isinstance(pointer, Pointer)}
    manifests = read_manifests(files, {key: version for key, version in versions.items() if version})
    return {key: _active(pointer, manifests.get(key)) for key, pointer in pointers.items() if pointer}


def read_active_by_index(
    files: ObjectStore, keys: Collection[ModuleKey], attempts: Mapping[ModuleKey, Attempts]
) -> dict[ModuleKey, ActiveVersion]:
    """Read the index of all tenants, and the files only of modules whose entry does not say enough.

    These are modules with a canary or after a rollback, and those whose version no outcome may have reported yet.
    Damaged files of the others are not noticed.
    """
    entries, tenants = read_serving(files), {tenant: safe_name(tenant) for tenant, _ in keys}
    found = {(tenant, module): entries.get((tenants[tenant], module)) for tenant, module in keys}
    known = {
        key: ActiveVersion(entry.version, entry.score if entry.version else None)
        for key, entry in found.items()
        if entry and not _needs_files(entry, attempts.get(key))
    }
    return known | read_active(files, [key for key, entry in found.items() if entry and key not in known])


def _needs_files(entry: ServingEntry, attempts: Attempts | None) -> bool:
    if entry.has_details or entry.version is None:
        return entry.has_details
    made = time_of_version(entry.version)
    return made is None or attempts is None or attempts.outcome_at is None or made > attempts.outcome_at


def _active(pointer: Pointer | AutooptError, manifest: Manifest | AutooptError | None) -> ActiveVersion:
    if isinstance(pointer, AutooptError):
        return ActiveVersion(error=str(pointer))
    read = manifest if isinstance(manifest, Manifest) else None
    return ActiveVersion(
        version=pointer.version,
        score=read.candidate_score if read else None,
        manifest=read,
        rolled_back=pointer.rolled_back,
        has_canary=pointer.canary is not None,
        error=str(manifest) if isinstance(manifest, AutooptError) else None,
    )
