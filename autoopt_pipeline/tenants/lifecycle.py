"""Tenants come and go: what a new one begins with, and what stays of one that is removed."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from autoopt_pipeline.errors import ConfigConflict
from autoopt_pipeline.tenants.config import RoutingConfigUnified, parse_config
from autoopt_pipeline.tenants.store import write_config
from autoopt_pipeline.tenants.stores.base import StoredConfig, TenantConfigStore


def new_tenant(tenant_id: str, agents: Iterable[str], *, where: str) -> RoutingConfigUnified:
    """A configuration that chooses nothing but its agents, each `NAME` or `NAME=WHAT IT IS FOR`.

    Raises `InvalidConfig`.
    """
    named = [dict(zip(("name", "description"), each.split("=", 1), strict=False)) for each in agents]
    return parse_config({"tenant_id": tenant_id, "agents": named}, where=where)


def spellings(known: Iterable[str]) -> dict[str, str]:
    """Tenants' ids by what they are without capital letters."""
    return {each.lower(): each for each in known}


def check_distinct(tenant_id: str, spelled: Mapping[str, str]) -> None:
    """Raise `ConfigConflict` where a new tenant's id differs from another's in capital letters only; `spelled` are the
    `spellings` of those that there are.

    People would take one for the other, and so would systems that do not tell capital letters from small ones.
    """
    other = spelled.get(tenant_id.lower(), tenant_id)
    if other != tenant_id:
        raise ConfigConflict(
            f"tenant {tenant_id} differs from {other} in capital letters only", f"use {other}, or choose another id"
        )


def add_tenant(store: TenantConfigStore, config: RoutingConfigUnified, *, actor: str = "") -> int:
    """Write the first configuration of a tenant, or the first after it was removed; return its version.

    Raises `ConfigConflict` where the tenant exists, also when somebody else adds it at the same moment, and where one
    exists whose id differs in capital letters only.
    """
    tenant = config.tenant_id
    check_distinct(tenant, spellings(store.current()))
    versions = store.history(tenant)
    if versions and versions[-1].document is not None:
        raise ConfigConflict(f"tenant {tenant} exists already", f"change it with 'autoopt config set {tenant} ...'")
    return write_config(store, config, actor=actor, expected_version=versions[-1].version if versions else 0)


def start_anew(store: TenantConfigStore, removed: StoredConfig, *, actor: str, now: datetime) -> int:
    """Say of a removed tenant that nothing which was before counts, should it ever be added again; return the version.

    Raises `ConfigConflict` where somebody was quicker.
    """
    return store.write(removed.tenant_id, None, actor=actor, expected_version=removed.version, since=now)


def what_stays(removed: StoredConfig) -> tuple[str, ...]:
    """What a removal leaves, for whoever removes the tenant; `removed` is its last configuration."""
    tenant = removed.tenant_id
    return (
        f"its programs, which go on serving; 'autoopt artifacts delete {tenant}' deletes them",
        f"its configurations; 'autoopt config revert {tenant} {removed.version}' brings the tenant back",
        "runs and their reports in Dagster, traces in Phoenix",
    )
