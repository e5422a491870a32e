"""Where tenants' configurations are kept. Every write is a new version, and a tenant exists because it has one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from autoopt_pipeline.errors import InvalidConfig, InvalidSettings, UnknownTenant
from autoopt_pipeline.tenants.config import RoutingConfigUnified, WatchSettings, chosen_fields, parse_config
from autoopt_pipeline.text import did_you_mean

NEVER = datetime.min.replace(tzinfo=UTC)
"""When an entry was written that does not say when."""


@dataclass(frozen=True)
class StoredConfig:
    """One version of a tenant's configuration, and who wrote it. `document` is None where it removes the tenant.

    What happened before `since` (UTC) does not count for the tenant any more: all that was learnt was deleted then.
    """

    tenant_id: str
    version: int
    written_at: datetime
    document: object | None
    by: str = ""
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
    by: str
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
        by: str = "",
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


def open_config_store(url: str) -> TenantConfigStore:
    """Open the store behind a URL: `sqlite:///path` or `redis://[user:password@]host:port/db` (`rediss://`).

    Raises `InvalidSettings` for any other, and for a SQLite database in memory, which would keep nothing.
    """
    scheme = url.partition(":")[0]
    if url.startswith("sqlite:///") and url not in {"sqlite:///", "sqlite:///:memory:"}:
        from autoopt_pipeline.tenants.stores.sqlite import SqliteConfigStore

        return SqliteConfigStore(url.removeprefix("sqlite:///"))
    if scheme in {"redis", "rediss"}:
        from autoopt_pipeline.tenants.stores.redis import RedisConfigStore

        return RedisConfigStore(url)
    raise InvalidSettings(
        f"configuration store {scheme + ':...' if ':' in url else url[:60]!r} is none that can be opened",
        "set AUTOOPT_CONFIG_STORE_URL to sqlite:///path/to/config.db or redis://host:6379/0",
    )


def read_config(store: TenantConfigStore, tenant_id: str) -> tuple[RoutingConfigUnified, int]:
    """A tenant's configuration and its version. Raises `UnknownTenant` or `InvalidConfig`."""
    newest = newest_version(store, tenant_id)
    return newest.parse(), newest.version


def watch_settings(store: TenantConfigStore, tenant_id: str) -> WatchSettings:
    """How the tenant has its new versions watched; a tenant that was removed has them not watched."""
    try:
        return read_config(store, tenant_id)[0].watch
    except UnknownTenant:
        return WatchSettings(enabled=False)


def newest_version(store: TenantConfigStore, tenant_id: str) -> StoredConfig:
    """The newest version as it is stored, be it valid or not. Raises `UnknownTenant`."""
    history = store.history(tenant_id)
    if not history or history[-1].document is None:
        raise unknown_tenant(tenant_id, store.current())
    return history[-1]


def unknown_tenant(tenant_id: str, known: Iterable[str]) -> UnknownTenant:
    """The error for a tenant that is none of those that are known, with the nearest of them."""
    names = list(known)
    listing = "list them with" if names else "see where they are looked for with"
    return UnknownTenant(
        f"tenant {tenant_id} has no configuration" + ("" if names else ", and there are no others"),
        f"{did_you_mean(tenant_id, names)}{listing} 'autoopt tenants list', or add it with 'autoopt tenants add "
        f"{tenant_id}'",
    )


def stored_version(store: TenantConfigStore, tenant_id: str, version: int) -> StoredConfig:
    """One version as it is stored. Raises `UnknownTenant` where there is none, or where it removes the tenant."""
    for entry in store.history(tenant_id):
        if entry.version == version and entry.document is not None:
            return entry
    raise UnknownTenant(
        f"tenant {tenant_id} has no configuration version {version}",
        f"'autoopt config history {tenant_id}' lists them",
    )


def write_config(
    store: TenantConfigStore, config: RoutingConfigUnified, *, by: str = "", expected_version: int | None = None
) -> int:
    """Write a configuration as a new version and return its number; `by` is who does it.

    Only what was chosen is stored, so that a later release's defaults reach the tenants who never chose.
    """
    return store.write(config.tenant_id, chosen_fields(config), by=by, expected_version=expected_version)


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
    return ConfigChange(after.tenant_id, after.version, after.written_at, after.by, what)


def changes_in(history: Sequence[StoredConfig]) -> list[ConfigChange]:
    """What each version of a tenant's history did, oldest first."""
    return [change_between(before, after) for before, after in zip([None, *history], history, strict=False)]
