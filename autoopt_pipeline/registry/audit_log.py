"""What people did to versions, across all tenants and in the order of time.

    {root}/_acts/{day}/{time}-{tenant}.json     one act: who did what, to which tenant's module, and why

What a run or a rollout does stands in Dagster's event log. A person may act where no Dagster is, but never without this
store. So each act is entered here, after it was done, under a name by which a page of them is found without reading the
others. The transitions themselves stay the place of record of what serves.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.timeline import Stretch

ACTS_FOLDER = "_acts"  # safe names begin with a letter or a digit

# Days with acts that one page looks through, where few of them are of the tenants that are asked for.
_DAYS = 31

_DAY, _TIME = "%Y-%m-%d", "%H%M%S%f"


class Act(BaseModel):
    """Something that a person did: `promoted`, `approved`, `rolled_back`, `declined` or `erased`. `module` is empty
    where it is about the whole tenant."""

    model_config = ConfigDict(frozen=True)

    at: AwareDatetime
    actor: str
    what: str
    tenant_id: str
    module: str
    text: str


def enter_act(files: ObjectStore, *, actor: str, what: str, tenant_id: str, module: str, text: str) -> None:
    """Enter what a person has just done."""
    act = Act(at=datetime.now(UTC), actor=actor, what=what, tenant_id=tenant_id, module=module, text=text)
    while not files.create(_path(act), act.model_dump_json().encode()):
        act = act.model_copy(update={"at": act.at + timedelta(microseconds=1)})


def recent_acts(
    files: ObjectStore, sees: Callable[[str], bool], *, before: datetime | None = None, limit: int
) -> Stretch[Act]:
    """The newest acts before a moment, of the tenants that somebody sees. An entry that cannot be read is left out."""
    names: list[tuple[datetime, str]] = []
    reaches = None
    for looked_at, (day, folder) in enumerate(_days(files, before)):
        if len(names) >= limit or looked_at == _DAYS:
            reaches = day + timedelta(days=1)
            break
        names += sorted(_of_day(files, folder, sees, before), reverse=True)
    if len(names) > limit:
        reaches = names[limit - 1][0]
    paths = [path for _, path in names[:limit]]
    found = files.read_many(paths)
    return Stretch([act for path in paths if (act := _parsed(found[path])) and sees(act.tenant_id)], reaches)


def _days(files: ObjectStore, before: datetime | None) -> Iterator[tuple[datetime, str]]:
    """Days with acts and their folders, newest first. What is called otherwise is none of ours."""
    for name in reversed(files.names(ACTS_FOLDER)):
        day = _moment(name, _DAY)
        if day and (before is None or day < before):
            yield day, name


def _of_day(
    files: ObjectStore, folder: str, sees: Callable[[str], bool], before: datetime | None
) -> Iterator[tuple[datetime, str]]:
    for name in files.names(f"{ACTS_FOLDER}/{folder}"):
        time, _, tenant = name.removesuffix(".json").partition("-")
        at = _moment(f"{folder} {time}", f"{_DAY} {_TIME}")
        if at and (before is None or at < before) and sees(unquote(tenant)):
            yield at, f"{ACTS_FOLDER}/{folder}/{name}"


def _moment(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError:
        return None


def _path(act: Act) -> str:
    at = act.at.astimezone(UTC)
    return f"{ACTS_FOLDER}/{at.strftime(_DAY)}/{at.strftime(_TIME)}-{quote(act.tenant_id, safe='')}.json"


def _parsed(raw: bytes | Exception) -> Act | None:
    try:
        return Act.model_validate_json(raw) if isinstance(raw, bytes) else None
    except ValidationError:
        return None
