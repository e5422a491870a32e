"""What every store of configurations holds, and what it promises."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from autoopt_pipeline.errors import ConfigConflict, InvalidConfig
from autoopt_pipeline.tenants.config import RoutingConfigUnified, json_or_text, parse_config

# When an entry was written that does not say when.
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class StoredConfig:
    """One version of a tenant's configuration, and who wrote it. `document` is None where it removes the tenant.

    What happened before `since` (UTC) does not count for the tenant any more: all that was learnt was deleted then.
    """

    tenant_id: str
    version: int
    written_at: datetime
    document: object | None
    actor: str = ""
    since: datetime | None = None

    def parse(self) -> RoutingConfigUnified:
        """The configuration. Raises `InvalidConfig` when it is malformed, or belongs to another tenant."""
        where = f"tenant {self.tenant_id}, configuration version {self.version}"
        config = parse_config(self.document, where=where)
        if config.tenant_id != self.tenant_id:
            raise InvalidConfig(
                f"{where}: tenant_id is {config.tenant_id!r}",
                "save the configuration under its own tenant id",
            )
        return config


@dataclass(frozen=True)
class ConfigChange:
    """What a version did, when (UTC), and who wrote it: `configuration_saved`, `tenant_added`, `tenant_removed` or
    `artifacts_deleted`."""

    tenant_id: str
    version: int
    at: datetime
    actor: str
    what: str


@dataclass(frozen=True)
class Risk:
    """A setting of a store's server that may lose tenants, and what to set instead."""

    what: str
    remedy: str


class TenantConfigStore(Protocol):
    """One face for every backend. Each method raises `ConfigStoreUnavailable` when the backend fails."""

    @property
    def name(self) -> str:
        """Its address, fit to be shown."""
        ...

    def current(self) -> Mapping[str, StoredConfig]:
        """The newest version of every tenant that is not removed, in few requests whatever their number."""
        ...

    def history(self, tenant_id: str) -> list[StoredConfig]:
        """All versions, oldest first; empty when the tenant never existed."""
        ...

    def changes(self, before: datetime | None, limit: int) -> list[ConfigChange]:
        """What the newest versions of all tenants did, of those that were written before a moment, newest first."""
        ...

    def write(
        self,
        tenant_id: str,
        document: object | None,
        *,
        actor: str = "",
        expected_version: int | None = None,
        since: datetime | None = None,
    ) -> int:
        """Append a version and return its number; None removes the tenant and keeps its history.

        Without `since`, it is that of the version before. Raises `ConfigConflict` when `expected_version` is given and
        is no longer the newest.
        """
        ...

    def check_writable(self) -> None:
        """Write as `write` does, and leave nothing of it."""
        ...

    def risks(self) -> list[Risk]:
        """What may lose tenants."""
        ...


def change_between(before: StoredConfig | None, after: StoredConfig) -> ConfigChange:
    """What a version did after the one before it; None where it is the first."""
    if after.since != (before.since if before else None):
        what = "artifacts_deleted"
    elif after.document is None:
        what = "tenant_removed"
    elif before is None or before.document is None:
        what = "tenant_added"
    else:
        what = "configuration_saved"
    return ConfigChange(after.tenant_id, after.version, after.written_at, after.actor, what)


def changes_in(history: Sequence[StoredConfig]) -> list[ConfigChange]:
    """What each version of a tenant's history did, oldest first."""
    return [change_between(before, after) for before, after in zip([None, *history], history, strict=False)]


def check_version(tenant_id: str, newest: int, expected: int | None) -> None:
    """Raise `ConfigConflict` when somebody else wrote since `expected` was read."""
    if expected is not None and expected != newest:
        raise ConfigConflict(
            f"tenant {tenant_id}: the configuration is at version {newest}, not {expected}",
            "read it again and repeat the change",
        )


def decode_document(text: str | None) -> object | None:
    """The stored JSON; text that is none is kept as text, so that reading it names the trouble."""
    return None if text is None else json_or_text(text)


def moment_of(text: object) -> datetime | None:
    """A stored moment; None where there is none, or it is not one."""
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
