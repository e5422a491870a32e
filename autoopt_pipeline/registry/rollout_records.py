"""An index of the active rollouts, the traces drawn for them, and the results of those that ended.

    {root}/_rollouts/{module}/{tenant}.json               this module may have a rollout: see its last transition
    {root}/{tenant}/{module}/rollout_draws/{sequence}/    the traces drawn for the rollout that this transition began
    {root}/{tenant}/{module}/rollouts/{sequence}.json     the result of that rollout

A rollout has no state of its own: it is the latest transition that names two versions, and the next transition ends it.
The index only saves a search through all tenants for the few that have one.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, ValidationError

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import DrawnTrace, StoredRecord
from autoopt_pipeline.tenant_id import safe_name

ROLLOUT_INDEX = "_rollouts"  # safe names begin with a letter or a digit

_SHORTEST_INTERVAL = timedelta(minutes=1)
# Part of a rollout's age that passes between two analyses, so that a rollout of two weeks gets about 50.
_INTERVAL_PER_AGE = 0.25
# Longest interval while reviews may come.
_REVIEWS_INTERVAL = timedelta(hours=6)
# An entry without a rollout is kept for this long, because its transition may still be under way.
_SETTLED = timedelta(hours=1)


class RolloutResult(BaseModel):
    """The result of a rollout. Versions are None for the baseline, scores are None without outcomes.

    Both versions made their `decisions` side by side. Of those, `outcomes` are known, with the mean `score` (0 to 1).
    """

    model_config = ConfigDict(frozen=True)

    sequence: int
    began: datetime
    ended: datetime
    version: str | None
    against: str | None
    status: str
    reason: str
    decisions: int
    decisions_against: int
    outcomes: int
    outcomes_against: int
    score: float | None
    score_against: float | None


class RolloutDraw(StoredRecord):
    """Traces that one attempt drew while two versions served side by side, and both versions' answers.

    `drawn` is in the order of review; a trace's `candidate` is the newer version and its `incumbent` the older one.
    `seen` holds digests of the queries that cannot be drawn again, and `lm` is the model that answered.
    """

    sequence: int
    at: datetime
    attempt: str
    lm: str
    seen: list[str]
    drawn: list[DrawnTrace]


def disagreements(draws: Iterable[RolloutDraw]) -> list[DrawnTrace]:
    """Return the traces that people are asked about, in the order of review. A trace without answers was erased."""
    return [trace for draw in draws for trace in draw.drawn if trace.incumbent.values != trace.candidate.values]


class RolloutIndexEntry(BaseModel):
    """A tenant's module that may have a rollout, since when, and when it was last analyzed (UTC).

    `to_review` is how many of its disagreements had no review at that time.
    """

    model_config = ConfigDict(frozen=True)

    tenant_id: str
    module: str
    at: datetime
    analyzed_at: datetime | None = None
    to_review: int = 0

    def is_due(self, now: datetime) -> bool:
        """Whether the next analysis is due. Older rollouts are analyzed less often, because they change less."""
        if self.analyzed_at is None:
            return True
        interval = max(_SHORTEST_INTERVAL, _INTERVAL_PER_AGE * (self.analyzed_at - self.at))
        return now - self.analyzed_at >= (min(interval, _REVIEWS_INTERVAL) if self.to_review else interval)

    @property
    def settled(self) -> bool:
        """Whether the transition that this entry announced has been made by now, or never will be."""
        return datetime.now(UTC) - self.at > _SETTLED


def index_rollout(
    files: ObjectStore, tenant_id: str, module: str, *, at: datetime | None = None, due: bool = False
) -> None:
    """Announce a rollout that is about to begin. With `at`, restore the entry of one that began then, if it is gone.

    With `due`, it is restored in any case, so that the next analysis comes at once.
    """
    entry = RolloutIndexEntry(tenant_id=tenant_id, module=module, at=at or datetime.now(UTC))
    write = files.create if at and not due else files.replace
    write(_path(entry), entry.model_dump_json().encode())


def record_analysis(files: ObjectStore, entry: RolloutIndexEntry, now: datetime, *, to_review: int = 0) -> None:
    """Record that a rollout was analyzed, unless another one has begun meanwhile."""
    if _read(files, _path(entry)) == entry:
        analyzed = entry.model_copy(update={"analyzed_at": now, "to_review": to_review})
        files.replace(_path(entry), analyzed.model_dump_json().encode())


def drop_index_entry(files: ObjectStore, entry: RolloutIndexEntry) -> None:
    """Remove an entry, unless another rollout has begun meanwhile."""
    if _read(files, _path(entry)) == entry:
        files.delete(_path(entry))


def indexed_rollouts(files: ObjectStore) -> list[RolloutIndexEntry]:
    """Every module that may have a rollout, of all tenants. Unreadable entries are left out."""
    folders = [f"{ROLLOUT_INDEX}/{module}" for module in files.names(ROLLOUT_INDEX)]
    paths = [f"{folder}/{name}" for folder in folders for name in files.names(folder)]
    entries = (_parse(raw) for raw in files.read_many(paths).values() if isinstance(raw, bytes))
    return [entry for entry in entries if entry]


def _path(entry: RolloutIndexEntry) -> str:
    return f"{ROLLOUT_INDEX}/{entry.module}/{safe_name(entry.tenant_id)}.json"


def _read(files: ObjectStore, path: str) -> RolloutIndexEntry | None:
    raw = files.read(path)
    return _parse(raw) if raw else None


def _parse(raw: bytes) -> RolloutIndexEntry | None:
    try:
        return RolloutIndexEntry.model_validate_json(raw)
    except ValidationError:
        return None
