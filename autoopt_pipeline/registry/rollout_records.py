"""What is watched in production, and how watches ended.

    {root}/_watches/{module}/{tenant}.json                 there may be a watch: look at the module's last move
    {root}/{tenant}/{module}/watches/{sequence}.json       how the watch that the move of this sequence began ended

A watch itself is nothing but a last move with a canary, so it ends with the next move, whoever makes it. The entries
below `_watches` only spare the search through all tenants for the few that have one.
"""

from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, ValidationError

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.tenant_id import safe_name

WATCHED_FOLDER = "_watches"  # safe names begin with a letter or a digit

_SHORTEST = timedelta(minutes=1)
_SHARE_BETWEEN = 0.25
"""Share of a watch's age that passes between two looks, so that about 50 looks make a watch of two weeks."""

_SETTLED = timedelta(hours=1)
"""Age from which on an entry without a watch is not one whose move is still to come."""


class WatchResult(BaseModel):
    """How a watch ended, and what it saw. Versions are None for the baseline, scores where nothing was known.

    `decisions` of each version were made side by side; of `outcomes` it is known how good they were, on average
    `score` (0 to 1).
    """

    model_config = ConfigDict(frozen=True)

    sequence: int
    began: datetime
    ended: datetime
    version: str | None
    against: str | None
    verdict: str
    reason: str
    decisions: int
    decisions_against: int
    outcomes: int
    outcomes_against: int
    score: float | None
    score_against: float | None


class Watched(BaseModel):
    """A tenant's module that may be watched, since when, and when it was last looked at (UTC)."""

    model_config = ConfigDict(frozen=True)

    tenant_id: str
    module: str
    at: datetime
    looked_at: datetime | None = None

    def is_due(self, now: datetime) -> bool:
        """Whether a look is worth it: the longer a watch has gone on, the less the next minute will tell."""
        if self.looked_at is None:
            return True
        return now - self.looked_at >= max(_SHORTEST, _SHARE_BETWEEN * (self.looked_at - self.at))

    @property
    def settled(self) -> bool:
        """Whether the move that it was entered for has been made by now, or never will be."""
        return datetime.now(UTC) - self.at > _SETTLED


def enter_watched(files: ObjectStore, tenant_id: str, module: str, *, at: datetime | None = None) -> None:
    """Say that a tenant's module is about to be watched; with `at`, that it is since then, unless that stands there."""
    watched = Watched(tenant_id=tenant_id, module=module, at=at or datetime.now(UTC))
    write = files.create if at else files.replace
    write(_path(watched), watched.model_dump_json().encode())


def note_look(files: ObjectStore, watched: Watched, now: datetime) -> None:
    """Remember a look, unless another watch has begun meanwhile."""
    if _read(files, _path(watched)) == watched:
        looked = watched.model_copy(update={"looked_at": now})
        files.replace(_path(watched), looked.model_dump_json().encode())


def drop_watched(files: ObjectStore, watched: Watched) -> None:
    """Take an entry away, unless another watch has begun meanwhile."""
    if _read(files, _path(watched)) == watched:
        files.delete(_path(watched))


def all_watched(files: ObjectStore) -> list[Watched]:
    """Every tenant's module that may be watched. Entries that cannot be read are left out; nobody serves by them."""
    folders = [f"{WATCHED_FOLDER}/{module}" for module in files.names(WATCHED_FOLDER)]
    paths = [f"{folder}/{name}" for folder in folders for name in files.names(folder)]
    found = (_parse(raw) for raw in files.read_many(paths).values() if isinstance(raw, bytes))
    return [watched for watched in found if watched]


def _path(watched: Watched) -> str:
    return f"{WATCHED_FOLDER}/{watched.module}/{safe_name(watched.tenant_id)}.json"


def _read(files: ObjectStore, path: str) -> Watched | None:
    raw = files.read(path)
    return _parse(raw) if raw else None


def _parse(raw: bytes) -> Watched | None:
    try:
        return Watched.model_validate_json(raw)
    except ValidationError:
        return None
