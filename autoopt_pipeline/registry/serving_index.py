"""An index of what serves, of all tenants, which a list of names shows without reading a file.

    {root}/_serving/{tenant}.{module}.{sequence}.{version}.{score}.{flags}      empty

The content of `active.json` decides. The index only saves two reads for each of 50,000 modules: an object store lists
1,000 names in one request. `score` is that of the version on the traces that decided, in tenths of a percent, or `-`.
The flags are `c` for a canary and `r` after a rollback, of which `active.json` has the details, or `-`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Manifest, Transition
from autoopt_pipeline.registry.transitions import pointer_after
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenant_id import safe_name

SERVING_INDEX = "_serving"  # safe names begin with a letter or a digit

_NAME = re.compile(
    r"(?P<tenant>[a-z0-9-]+)\.(?P<module>[a-z0-9_]+)\.(?P<sequence>[0-9]{8})"
    r"\.(?P<version>[A-Za-z0-9_-]+)\.(?P<score>[0-9]{1,4}|-)\.(?P<flags>[cr]{1,2}|-)"
)
_UNKNOWN = "-"


@dataclass(frozen=True)
class ServingEntry:
    """What serves since a transition. `version` is None for the baseline, and `score` (0 to 1) where it is unknown.

    With `has_details`, `active.json` names a canary or a rollback.
    """

    sequence: int
    version: str | None
    score: float | None
    has_details: bool


def entry_path(tenant_id: str, module: str, transitions: Sequence[Transition], manifest: Manifest | None) -> str:
    """Return the path of the entry after these transitions, of which there is at least one.

    `manifest` is that of the version that is active then.
    """
    pointer = pointer_after(transitions)
    known = manifest is not None and manifest.candidate_score is not None
    score = f"{round(1000 * manifest.candidate_score)}" if manifest and known else _UNKNOWN
    flags = "c" * bool(pointer.canary) + "r" * bool(pointer.rolled_back) or _UNKNOWN
    name = f"{safe_name(tenant_id)}.{module}.{pointer.sequence:08d}.{pointer.version or BASELINE}.{score}.{flags}"
    return f"{SERVING_INDEX}/{name}"


def entry_paths(files: ObjectStore, tenant_id: str) -> list[str]:
    """Return the paths of a tenant's entries."""
    own = f"{safe_name(tenant_id)}."
    return [f"{SERVING_INDEX}/{name}" for name in files.names(SERVING_INDEX) if name.startswith(own)]


def read_serving(files: ObjectStore) -> dict[tuple[str, str], ServingEntry]:
    """Return what serves by the safe name of the tenant and module. Modules that were never promoted are left out."""
    newest: dict[tuple[str, str], ServingEntry] = {}
    for name in files.names(SERVING_INDEX):
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        place, sequence = (found["tenant"], found["module"]), int(found["sequence"])
        if place in newest and newest[place].sequence > sequence:
            continue
        newest[place] = ServingEntry(
            sequence,
            None if found["version"] == BASELINE else found["version"],
            None if found["score"] == _UNKNOWN else int(found["score"]) / 1000,
            found["flags"] != _UNKNOWN,
        )
    return newest
