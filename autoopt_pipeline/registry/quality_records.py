"""What the monitor of live quality last saw of every tenant's modules.

    {root}/_quality/checks.json              all tenants: when each is checked next, its levels and its last falls
    {root}/_quality/falls.json               the falls among them, which are few
    {root}/{tenant}/{module}/quality.json   the state of the monitor of the version that serves

Everything in the first two files is in the others, too. They make one request of what would be one for each tenant.
Only the quality sensor writes them, whose ticks never overlap.
"""

from collections.abc import Mapping

from pydantic import AwareDatetime, Field, NonNegativeInt, TypeAdapter, ValidationError

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import StoredRecord
from autoopt_pipeline.tenant_id import safe_name

QUALITY_FOLDER = "_quality"  # safe names begin with a letter or a digit

_CHECKS = f"{QUALITY_FOLDER}/checks.json"
_FALLS = f"{QUALITY_FOLDER}/falls.json"


class QualityFall(StoredRecord):
    """A fall of `what` (quality, success or confidence) from one level to another (0 to 1) since a moment (UTC).

    It was found `at` another one, by the `outcomes` since then; `cause` is in words.
    """

    what: str
    at: AwareDatetime
    since: AwareDatetime
    before: float
    after: float
    outcomes: int
    cause: str

    def __str__(self) -> str:
        path = f"from {100 * self.before:.0f} to {100 * self.after:.0f} %"
        return f"{self.what} fell {path} since {self.since:%Y-%m-%d}: {self.cause}"


class ModuleQuality(StoredRecord):
    """The version that serves (None: the baseline), and the mean of its last `outcomes` with an interval (0 to 1).

    Levels are None without outcomes. `fall` is the last one of this version, if any.
    """

    version: str | None
    outcomes: int = 0
    level: float | None = None
    low: float | None = None
    high: float | None = None
    fall: QualityFall | None = None

    def __str__(self) -> str:
        now = "no outcomes yet"
        if self.level is not None and self.low is not None and self.high is not None:
            interval = f"{100 * self.low:.0f} to {100 * self.high:.0f}"
            now = f"{100 * self.level:.0f} % on its last days with outcomes ({interval}, {self.outcomes} outcomes)"
        return f"{self.fall}; {now}" if self.fall else now


class TenantCheck(StoredRecord):
    """When a tenant is checked next, and what was seen: all before `until` (UTC), and its project's `annotations`."""

    due: AwareDatetime
    until: AwareDatetime | None = None
    annotations: NonNegativeInt = 0
    modules: dict[str, ModuleQuality] = Field({})


_TENANTS = TypeAdapter(dict[str, TenantCheck])
_FALLEN = TypeAdapter(dict[str, dict[str, QualityFall]])


def read_checks(files: ObjectStore) -> dict[str, TenantCheck]:
    """The last check of each tenant, in one request. Empty if the file is missing or damaged: the sensor makes it again
    from the states."""
    raw = files.read(_CHECKS)
    try:
        return _TENANTS.validate_json(raw) if raw else {}
    except ValidationError:
        return {}


def write_checks(files: ObjectStore, checks: Mapping[str, TenantCheck]) -> None:
    """Store the checks of all tenants, and their falls apart."""
    fallen: dict[str, dict[str, QualityFall]] = {}
    for tenant, check in checks.items():
        for module, quality in check.modules.items():
            if quality.fall:
                fallen.setdefault(tenant, {})[module] = quality.fall
    files.replace(_FALLS, _FALLEN.dump_json(fallen))
    files.replace(_CHECKS, _TENANTS.dump_json(dict(checks), exclude_defaults=True))


def read_qualities(files: ObjectStore) -> dict[tuple[str, str], ModuleQuality]:
    """What was last seen of each (tenant, module) that is monitored, in one request."""
    return {
        (tenant, module): quality
        for tenant, check in read_checks(files).items()
        for module, quality in check.modules.items()
    }


def read_falls(files: ObjectStore) -> dict[tuple[str, str], QualityFall]:
    """The last fall of each (tenant, module) that had one, in one request whose cost grows with the falls alone."""
    raw = files.read(_FALLS)
    try:
        fallen = _FALLEN.validate_json(raw) if raw else {}
    except ValidationError:
        return {}
    return {(tenant, module): fall for tenant, falls in fallen.items() for module, fall in falls.items()}


def quality_path(tenant_id: str, module: str) -> str:
    return f"{safe_name(tenant_id)}/{module}/quality.json"
