"""The configuration store and the artifact store: reachable, writable, and safe to rely on."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from autoopt_pipeline.connections import Connections
from autoopt_pipeline.doctor.clock import compare_clocks
from autoopt_pipeline.doctor.findings import Finding, fail, ok, warn
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.tenants.config import check_modules

_FOLDER = "_doctor"  # no tenant's folder can be called so
_SHOWN = 5


def config_store(parts: Connections) -> Iterator[Finding]:
    stored = parts.configs.current()
    parts.configs.check_writable()
    yield ok(f"{len(stored)} tenants; it can be written")
    for risk in parts.configs.risks():
        yield warn(risk.what, risk.remedy)
    wrong: list[AutooptError] = []
    for entry in stored.values():
        try:
            check_modules(entry.parse())
        except AutooptError as e:
            wrong.append(e)
    for error in wrong[:_SHOWN]:
        yield fail(error.what, error.remedy)
    if len(wrong) > _SHOWN:
        yield fail(f"{len(wrong) - _SHOWN} more configurations are not valid", "'autoopt tenants list' shows them")


def artifact_store(parts: Connections) -> Iterator[Finding]:
    """Write, read and delete a file, and try to create it twice: a promotion relies on that only one writer can."""
    files = parts.files
    path = f"{_FOLDER}/{uuid.uuid4().hex}"
    try:
        created = files.create(path, b"first")
        ours = datetime.now(UTC)
        again = files.create(path, b"second")
        if not created or files.read(path) != (b"second" if again else b"first"):
            yield fail(f"{path} cannot be written and read back", "check AUTOOPT_ARTIFACTS_URL, and what stands there")
            return
        if again:
            yield fail(
                "two writers can create the same file, so a promotion could be lost",
                "use a store with conditional writes: a local folder, S3 or GCS",
            )
            return
        yield ok("it can be written and read, and a file is created only once")
        allowed = timedelta(seconds=parts.settings.settling_seconds)
        yield compare_clocks("the artifact store", files.modified(path), ours, allowed)
    finally:
        files.delete(path)
        files.delete_empty(_FOLDER)
