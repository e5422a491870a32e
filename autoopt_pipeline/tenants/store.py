"""Stores of tenants' configurations. Every write is a new version, and a tenant exists if it has a configuration."""

from collections.abc import Iterable

from autoopt_pipeline.errors import InvalidSettings, UnknownTenant
from autoopt_pipeline.tenants.config import RolloutPolicy, RoutingConfigUnified, chosen_fields
from autoopt_pipeline.tenants.stores.base import StoredConfig, TenantConfigStore
from autoopt_pipeline.text import did_you_mean


def open_config_store(url: str) -> TenantConfigStore:
    """Open the store behind a URL: `sqlite:///path` or `redis://[user:password@]host:port/db` (`rediss://`).

    Raises `InvalidSettings` for any other URL, and for a SQLite database in memory, which would lose everything.
    """
    scheme = url.partition(":")[0]
    if url.startswith("sqlite:///") and url not in {"sqlite:///", "sqlite:///:memory:"}:
        from autoopt_pipeline.tenants.stores.sqlite import SqliteConfigStore

        return SqliteConfigStore(url.removeprefix("sqlite:///"))
    if scheme in {"redis", "rediss"}:
        from autoopt_pipeline.tenants.stores.redis import RedisConfigStore

        return RedisConfigStore(url)
    raise InvalidSettings(
        f"configuration store {scheme + ':...' if ':' in url else url[:60]!r} is not supported",
        "set AUTOOPT_CONFIG_STORE_URL to sqlite:///path/to/config.db or redis://host:6379/0",
    )


def read_config(store: TenantConfigStore, tenant_id: str) -> tuple[RoutingConfigUnified, int]:
    """A tenant's configuration and its version. Raises `UnknownTenant` or `InvalidConfig`."""
    newest = newest_version(store, tenant_id)
    return newest.parse(), newest.version


def rollout_policy(store: TenantConfigStore, tenant_id: str) -> RolloutPolicy:
    """The tenant's rollout policy. New versions of a removed tenant are not monitored."""
    try:
        return read_config(store, tenant_id)[0].rollout
    except UnknownTenant:
        return RolloutPolicy(monitor=False)


def newest_version(store: TenantConfigStore, tenant_id: str) -> StoredConfig:
    """The newest version as it is stored, valid or not. Raises `UnknownTenant`."""
    history = store.history(tenant_id)
    if not history or history[-1].document is None:
        raise unknown_tenant(tenant_id, store.current())
    return history[-1]


def unknown_tenant(tenant_id: str, known: Iterable[str]) -> UnknownTenant:
    """The error for an unknown tenant, with the most similar known one."""
    names = list(known)
    listing = "list them with" if names else "see the store's address with"
    return UnknownTenant(
        f"tenant {tenant_id} has no configuration" + ("" if names else ", and there are no others"),
        f"{did_you_mean(tenant_id, names)}{listing} 'autoopt tenants list', or add it with 'autoopt tenants add "
        f"{tenant_id}'",
    )


def stored_version(store: TenantConfigStore, tenant_id: str, version: int) -> StoredConfig:
    """One version as it is stored. Raises `UnknownTenant` if it does not exist, or removes the tenant."""
    for entry in store.history(tenant_id):
        if entry.version == version and entry.document is not None:
            return entry
    raise UnknownTenant(
        f"tenant {tenant_id} has no configuration version {version}",
        f"'autoopt config history {tenant_id}' lists them",
    )


def write_config(
    store: TenantConfigStore, config: RoutingConfigUnified, *, actor: str = "", expected_version: int | None = None
) -> int:
    """Write a configuration as a new version, and return its number.

    Stores only the fields that were set, so that a later release's defaults apply to all others.
    """
    return store.write(config.tenant_id, chosen_fields(config), actor=actor, expected_version=expected_version)
