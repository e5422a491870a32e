"""What the monitor of live quality last saw of every tenant's modules.

    {root}/_quality/checks.json              all tenants: when each is checked next, its levels and its last falls
    {root}/_quality/falls.json               the falls among them, which are few
    {root}/{tenant}/{module}/quality.json   the state of the monitor of the version that serves
    {root}/_quality/replays/                see registry.replays

Everything in the first two files is in the others, too. They make one request of what would be one for each tenant.
Only the quality sensor writes them, whose ticks never overlap.
"""

from collections.abc import Collection, Mapping

from pydantic import AwareDatetime, Field, NonNegativeInt, TypeAdapter, ValidationError
from pydantic_core import from_json

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import StoredRecord
from autoopt_pipeline.tenant_id import safe_name

QUALITY_FOLDER = "_quality"  # safe names begin with a letter or a digit

_CHECKS = f"{QUALITY_FOLDER}/checks.json"
_FALLS = f"{QUALITY_FOLDER}/falls.json"


class QualityFall(StoredRecord):
    """A fall of `what` (quality, success or confidence) from one level to another (0 to 1) since a moment (UTC).

    It was found `at` another one, by the `outcomes` since then. `cause` is a value of `evaluation.fall_cause.Cause`,
    `group` the class where it is one class, and `detail` what else is known of the cause, in words.
    """

    what: str
    at: AwareDatetime
    since: AwareDatetime
    before: float
    after: float
    outcomes: int
    cause: str
    group: str = ""
    detail: str = ""

    def __str__(self) -> str:
        path = f"from {100 * self.before:.0f} to {100 * self.after:.0f} %"
        cause = f"{self.cause} ({self.group})" if self.group else self.cause
        return f"{self.what} fell {path} since {self.since:%Y-%m-%d}: {cause}{self.detail and f'; {self.detail}'}"


class ModuleQuality(StoredRecord):
    """The version that serves (None: the baseline), and the mean of its last `outcomes` with an interval (0 to 1).

    Levels are None without outcomes. `fall` is the last one of this version, if any, and `changed` says how its
    language model was last found to answer differently, or is empty.
    """

    version: str | None
    outcomes: int = 0
    level: float | None = None
    low: float | None = None
    high: float | None = None
    fall: QualityFall | None = None
    changed: str = ""

    def __str__(self) -> str:
        now = "no outcomes yet"
        if self.level is not None and self.low is not None and self.high is not None:
            interval = f"{100 * self.low:.0f} to {100 * self.high:.0f}"
            now = f"{100 * self.level:.0f} % on its last days with outcomes ({interval}, {self.outcomes} outcomes)"
        is_told = self.fall is not None and self.fall.detail == self.changed
        return "; ".join(str(part) for part in (self.fall, "" if is_told else self.changed, now) if part)


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


def read_qualities(
    files: ObjectStore, *, tenants: Collection[str] | None = None, fallen_only: bool = False
) -> dict[tuple[str, str], ModuleQuality]:
    """What was last seen of each (tenant, module) that is monitored, of these tenants or of all, in one request.

    `fallen_only` leaves out those that never fell: of many tenants, nearly all the time is theirs.
    """
    raw = files.read(_CHECKS)
    found = {}
    try:
        document = from_json(raw) if raw else {}
        for tenant, check in document.items():
            if tenants is not None and tenant not in tenants:
                continue
            for module, quality in check.get("modules", {}).items():
                if not fallen_only or quality.get("fall"):
                    found[tenant, module] = ModuleQuality.model_validate(quality)
    except (ValueError, AttributeError):  # damaged, see `read_checks`
        return {}
    return found


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
