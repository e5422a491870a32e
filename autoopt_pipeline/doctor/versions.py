"""Checks that each version that serves is readable, belongs to its tenant, and asks a model that the tenant has."""

import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.doctor.findings import Finding, fail, ok
from autoopt_pipeline.errors import AutooptError, InvalidTenantId
from autoopt_pipeline.lm.choice import answering_models
from autoopt_pipeline.modules.catalog import module_names
from autoopt_pipeline.registry.records import check_models
from autoopt_pipeline.registry.version_store import read_pointers
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenant_id import safe_name
from autoopt_pipeline.tenants.stores.base import StoredConfig

# Time limit for loading versions. Each takes three reads, of 30 ms each in an object store.
SECONDS = 15.0

_TENANTS_AT_ONCE = 100
_THREADS = 16
_SHOWN = 5


def active_versions(parts: Connections, *, seconds: float = SECONDS) -> Iterator[Finding]:
    """Load the active versions and canaries until the time limit.

    The order is random, so that the next call covers others.
    """
    deadline = time.monotonic() + seconds
    stored = parts.configs.current()
    left = tenants = _with_programs(parts, stored)
    random.shuffle(left)
    loaded, damaged = 0, list[AutooptError]()
    with ThreadPoolExecutor(_THREADS) as pool:
        while left and time.monotonic() < deadline:
            some, left = left[:_TENANTS_AT_ONCE], left[_TENANTS_AT_ONCE:]
            serving = list[tuple[str, str, str]]()
            pointers = read_pointers(parts.files, [(tenant, module) for tenant in some for module in module_names()])
            for (tenant, module), pointer in pointers.items():
                if isinstance(pointer, AutooptError):
                    damaged.append(pointer)
                elif pointer:
                    names = {pointer.version, *(pointer.canary or ())} - {None, BASELINE}
                    serving += [(tenant, module, name) for name in sorted(filter(None, names))]
            loaded += len(serving)
            models = {tenant: _models(parts, stored[tenant]) for tenant in some}
            damaged += filter(None, pool.map(partial(_damage, parts, models), serving))
    for error in sorted(damaged, key=str)[:_SHOWN]:
        yield fail(error.what, error.remedy)
    if len(damaged) > _SHOWN:
        yield fail(
            f"{len(damaged) - _SHOWN} more versions cannot serve",
            "'autoopt status' and 'autoopt models' show their tenants",
        )
    summary = (
        f"checked {loaded} versions that serve {len(tenants) - len(left)} tenants; "
        f"{len(stored) - len(tenants)} tenants have no program yet"
    )
    yield ok(f"{summary}; no time was left for {len(left)} tenants" if left else summary)


def _with_programs(parts: Connections, stored: Mapping[str, StoredConfig]) -> list[str]:
    """Return the tenants with anything in the artifact store, from one listing."""
    folders = set(parts.files.names(""))
    tenants = []
    for tenant in stored:
        try:
            if safe_name(tenant) in folders:
                tenants.append(tenant)
        except InvalidTenantId:
            continue  # a finding of the configuration store's check
    return tenants


def _models(parts: Connections, entry: StoredConfig) -> tuple[str, ...] | None:
    """Return the language models that a tenant's programs can ask; None if another check reports why it has none."""
    try:
        return answering_models(entry.parse(), parts.settings)
    except AutooptError:
        return None


def _damage(
    parts: Connections, models: Mapping[str, tuple[str, ...] | None], version: tuple[str, str, str]
) -> AutooptError | None:
    tenant, module, name = version
    try:
        program = parts.artifacts(tenant, module).load(name)
        if (known := models[tenant]) is not None:
            check_models(program, known)
    except AutooptError as e:
        return e
    return None
