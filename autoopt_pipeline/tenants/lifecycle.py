"""Adds and removes tenants."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from autoopt_pipeline.errors import ConfigConflict
from autoopt_pipeline.tenants.config import RoutingConfigUnified, parse_config
from autoopt_pipeline.tenants.store import write_config
from autoopt_pipeline.tenants.stores.base import StoredConfig, TenantConfigStore


def new_tenant(tenant_id: str, agents: Iterable[str], *, where: str) -> RoutingConfigUnified:
    """A configuration that sets only its agents, each given as `NAME` or `NAME=PURPOSE`.

    Raises `InvalidConfig`.
    """
    named = [dict(zip(("name", "description"), agent.split("=", 1), strict=False)) for agent in agents]
    return parse_config({"tenant_id": tenant_id, "agents": named}, where=where)


def spellings(known: Iterable[str]) -> dict[str, str]:
    """Map the lower-case form of each tenant's id to the id."""
    return {tenant_id.lower(): tenant_id for tenant_id in known}


def check_distinct(tenant_id: str, spelled: Mapping[str, str]) -> None:
    """Raise `ConfigConflict` if a new tenant's id differs from another only in capital letters.

    People and case-insensitive systems would confuse the two. `spelled` are the `spellings` of the existing tenants.
    """
    other = spelled.get(tenant_id.lower(), tenant_id)
    if other != tenant_id:
        raise ConfigConflict(
            f"tenant {tenant_id} differs from {other} in capital letters only", f"use {other}, or choose another id"
        )


def add_tenant(store: TenantConfigStore, config: RoutingConfigUnified, *, actor: str = "") -> int:
    """Write the first configuration of a new or removed tenant, and return its version.

    Raises `ConfigConflict` if the tenant exists, even if somebody else adds it at the same moment, or if another
    tenant's id differs only in capital letters.
    """
    tenant = config.tenant_id
    check_distinct(tenant, spellings(store.current()))
    versions = store.history(tenant)
    if versions and versions[-1].document is not None:
        raise ConfigConflict(f"tenant {tenant} exists already", f"change it with 'autoopt config set {tenant} ...'")
    return write_config(store, config, actor=actor, expected_version=versions[-1].version if versions else 0)


def start_anew(store: TenantConfigStore, removed: StoredConfig, *, actor: str, now: datetime) -> int:
    """Record that a removed tenant starts from scratch if somebody adds it again; return the version of the record.

    Raises `ConfigConflict` if somebody else changed the tenant in the meantime.
    """
    return store.write(removed.tenant_id, None, actor=actor, expected_version=removed.version, since=now)


def kept_after_removal(removed: StoredConfig) -> tuple[str, ...]:
    """Data that stays after a removal, as lines for people. `removed` is the last configuration."""
    tenant = removed.tenant_id
    return (
        f"its programs, which continue to serve; 'autoopt artifacts delete {tenant}' deletes them",
        f"its configurations; 'autoopt config revert {tenant} {removed.version}' brings the tenant back",
        "runs and their reports in Dagster, traces in Phoenix",
    )
