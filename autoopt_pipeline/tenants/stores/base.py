"""The interface of configuration stores, and their records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from autoopt_pipeline.errors import ConfigConflict, InvalidConfig
from autoopt_pipeline.tenants.config import RoutingConfigUnified, json_or_text, parse_config

# The time of an entry without a valid time.
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """One version of a tenant's configuration, and its author. `text` is JSON, or None if it removes the tenant.

    Events before `since` (UTC) do not count for the tenant, because its programs were deleted then.
    """

    tenant_id: str
    version: int
    written_at: datetime
    text: str | None
    actor: str = ""
    since: datetime | None = None

    @property
    def document(self) -> object | None:
        """The decoded text, on each access: most of a large fleet is read every minute and looked into by nobody.

        Invalid JSON stays text, so that parsing the configuration reports the error.
        """
        return None if self.text is None else json_or_text(self.text)

    def parse(self) -> RoutingConfigUnified:
        """The configuration. Raises `InvalidConfig` if it is malformed, or belongs to another tenant."""
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
    """The effect of a version, its time (UTC) and its author.

    `what` is `configuration_saved`, `tenant_added`, `tenant_removed` or `artifacts_deleted`.
    """

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
    """The interface of all backends. Each method raises `ConfigStoreUnavailable` if the backend fails."""

    @property
    def name(self) -> str:
        """The store's address, without secrets."""
        ...

    def current(self) -> Mapping[str, StoredConfig]:
        """The newest version of every tenant that is not removed, in a few requests for any number of tenants."""
        ...

    def history(self, tenant_id: str) -> list[StoredConfig]:
        """All versions, oldest first; empty if the tenant never existed."""
        ...

    def changes(self, before: datetime | None, limit: int) -> list[ConfigChange]:
        """The newest changes of all tenants before a moment, newest first."""
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

        Without `since`, the new version keeps that of the previous one. Raises `ConfigConflict` if `expected_version`
        is given but is not the newest.
        """
        ...

    def check_writable(self) -> None:
        """Check that `write` would succeed, by a write that leaves no trace."""
        ...

    def risks(self) -> list[Risk]:
        """Settings of the server that may lose tenants."""
        ...


def change_between(before: StoredConfig | None, after: StoredConfig) -> ConfigChange:
    """Derive the effect of a version from the previous one, which is None for the first version."""
    if after.since != (before.since if before else None):
        what = "artifacts_deleted"
    elif after.text is None:
        what = "tenant_removed"
    elif before is None or before.text is None:
        what = "tenant_added"
    else:
        what = "configuration_saved"
    return ConfigChange(after.tenant_id, after.version, after.written_at, after.actor, what)


def changes_in(history: Sequence[StoredConfig]) -> list[ConfigChange]:
    """The effect of each version in a tenant's history, oldest first."""
    return [change_between(before, after) for before, after in zip([None, *history], history, strict=False)]


def check_version(tenant_id: str, newest: int, expected: int | None) -> None:
    """Raise `ConfigConflict` if somebody else has written since `expected` was read."""
    if expected is not None and expected != newest:
        raise ConfigConflict(
            f"tenant {tenant_id}: the configuration is at version {newest}, not {expected}",
            "read it again and repeat the change",
        )


def moment_of(text: object) -> datetime | None:
    """Parse a stored moment; None if it is missing or invalid."""
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
