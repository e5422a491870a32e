"""The audit log: what people did to versions, for all tenants, in order of time.

    {root}/_audit_log/{day}/{time}-{tenant}.json     one entry: who did what to which tenant's module, and why

Dagster's event log records what runs and rollouts do. A person can act where Dagster is not reachable, but never
without this store. So each action is recorded here after it was done. Names of entries hold time and tenant, so a
reader finds a page of them without reading the others. The transitions remain the record of what serves.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.timeline import Stretch

AUDIT_LOG_FOLDER = "_audit_log"  # safe names begin with a letter or a digit

# Most days that one page searches, in case few entries are about the requested tenants.
_DAYS = 31

_DAY, _TIME = "%Y-%m-%d", "%H%M%S%f"


class AuditEntry(BaseModel):
    """An action of a person. `what` is `promoted`, `approved`, `rolled_back`, `declined`, `erased` or similar.

    `module` is empty if the action concerns the whole tenant.
    """

    model_config = ConfigDict(frozen=True)

    at: AwareDatetime
    actor: str
    what: str
    tenant_id: str
    module: str
    text: str


def record_action(files: ObjectStore, *, actor: str, what: str, tenant_id: str, module: str, text: str) -> None:
    """Record what a person has just done."""
    entry = AuditEntry(at=datetime.now(UTC), actor=actor, what=what, tenant_id=tenant_id, module=module, text=text)
    while not files.create(_path(entry), entry.model_dump_json().encode()):
        entry = entry.model_copy(update={"at": entry.at + timedelta(microseconds=1)})


def recent_entries(
    files: ObjectStore, sees: Callable[[str], bool], *, before: datetime | None = None, limit: int
) -> Stretch[AuditEntry]:
    """Return the newest entries before a time, for tenants that `sees` accepts. Unreadable entries are left out."""
    names: list[tuple[datetime, str]] = []
    reaches = None
    for days_read, (day, folder) in enumerate(_days(files, before)):
        if len(names) >= limit or days_read == _DAYS:
            reaches = day + timedelta(days=1)
            break
        names += sorted(_of_day(files, folder, sees, before), reverse=True)
    if len(names) > limit:
        reaches = names[limit - 1][0]
    paths = [path for _, path in names[:limit]]
    contents = files.read_many(paths)
    return Stretch([entry for path in paths if (entry := _parsed(contents[path])) and sees(entry.tenant_id)], reaches)


def _days(files: ObjectStore, before: datetime | None) -> Iterator[tuple[datetime, str]]:
    """Yield days and their folders, newest first. Ignores names of any other form."""
    for name in reversed(files.names(AUDIT_LOG_FOLDER)):
        day = _moment(name, _DAY)
        if day and (before is None or day < before):
            yield day, name


def _of_day(
    files: ObjectStore, folder: str, sees: Callable[[str], bool], before: datetime | None
) -> Iterator[tuple[datetime, str]]:
    for name in files.names(f"{AUDIT_LOG_FOLDER}/{folder}"):
        time, _, tenant = name.removesuffix(".json").partition("-")
        at = _moment(f"{folder} {time}", f"{_DAY} {_TIME}")
        if at and (before is None or at < before) and sees(unquote(tenant)):
            yield at, f"{AUDIT_LOG_FOLDER}/{folder}/{name}"


def _moment(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        return None


def _path(entry: AuditEntry) -> str:
    at = entry.at.astimezone(UTC)
    return f"{AUDIT_LOG_FOLDER}/{at.strftime(_DAY)}/{at.strftime(_TIME)}-{quote(entry.tenant_id, safe='')}.json"


def _parsed(raw: bytes | Exception) -> AuditEntry | None:
    try:
        return AuditEntry.model_validate_json(raw) if isinstance(raw, bytes) else None
    except ValidationError:
        return None
