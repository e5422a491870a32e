"""The stores, the Dagster instance and the caches that the pages use."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import dagster as dg
from starlette.requests import Request

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.dashboard.asked_questions import AskedQuestions
from autoopt_pipeline.dashboard.auth import Access, User
from autoopt_pipeline.dashboard.count_cache import Counts
from autoopt_pipeline.dashboard.sensors import read_sensors
from autoopt_pipeline.dashboard.status_cache import StatusCache, StatusSnapshot
from autoopt_pipeline.dashboard.trend_cache import TrendCache
from autoopt_pipeline.errors import UnknownTenant
from autoopt_pipeline.modules.catalog import read_modules_again
from autoopt_pipeline.status.fleet_decisions import FleetDecisions
from autoopt_pipeline.status.module_detail import ModuleDetail, module_stories
from autoopt_pipeline.status.module_status import ModuleStatus, tenant_standings
from autoopt_pipeline.status.week import read_week
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.text import did_you_mean

_FEW_TENANTS = 500
"""With more tenants, the overview counts new traces only where they decide, and reads no files of what serves. A
tenant's own page does both."""

FIRST_TENANTS = 10
"""The tenants that a page shows while all are being read for the first time."""


@dataclass
class Dashboard:
    """The same stores and Dagster instance that the daemon uses, the users, and the caches."""

    parts: Connections
    instance: dg.DagsterInstance
    access: Access
    statuses: StatusCache
    counts: Counts
    asked: AskedQuestions = field(default_factory=AskedQuestions)
    trends: TrendCache = field(default_factory=TrendCache)

    def standings(self, entry: StoredConfig) -> list[ModuleStatus]:
        """The status of a tenant's modules, with the last known counts when Phoenix does not answer."""
        now, stored = datetime.now(UTC), {entry.tenant_id: entry}
        return self.counts.completed(tenant_standings(stored, self.instance, self.parts, now=now, count_all=True))

    def stories(self, entry: StoredConfig, modules: Collection[str], *, now: datetime) -> list[ModuleDetail]:
        """The stories of some modules, with counts as in `standings`. Raises the errors of `module_stories`."""
        return self.counts.completed_stories(module_stories(entry, modules, self.instance, self.parts, now=now))

    def configs(self, user: User) -> Mapping[str, StoredConfig]:
        """The tenants that a user may see, by id."""
        return {tenant: entry for tenant, entry in self.parts.configs.current().items() if user.sees(tenant)}


def open_dashboard(parts: Connections, instance: dg.DagsterInstance, access: Access) -> Dashboard:
    """Open the dashboard. It reads nothing before the first request for a page."""
    counts, fleet = Counts(), FleetDecisions()

    def read_first() -> StatusSnapshot | None:
        stored, now = parts.configs.current(), datetime.now(UTC)
        some = {tenant: stored[tenant] for tenant in sorted(stored, key=str.lower)[:FIRST_TENANTS]}
        left = len(stored) - len(some)
        if not left:
            return None
        standings = counts.completed(tenant_standings(some, instance, parts, now=now))
        return StatusSnapshot(now, tuple(standings), tenants_left=left)

    def read_all() -> StatusSnapshot:
        read_modules_again()
        stored = parts.configs.current()
        few, now = len(stored) <= _FEW_TENANTS, datetime.now(UTC)
        standings = tenant_standings(stored, instance, parts, now=now, count_all=few, fleet=None if few else fleet)
        return StatusSnapshot(
            now,
            tuple(counts.completed(standings, of_all=True)),
            read_week(instance, now),
            tuple(read_sensors(instance)),
        )

    def read_tenant(tenant: str) -> list[ModuleStatus]:
        history = parts.configs.history(tenant)
        stored = {tenant: history[-1]} if history and history[-1].document is not None else {}
        return counts.completed(tenant_standings(stored, instance, parts, now=datetime.now(UTC), count_all=True))

    return Dashboard(parts, instance, access, StatusCache(read_first, read_all, read_tenant), counts)


def dashboard_of(request: Request) -> Dashboard:
    return request.app.state.dashboard


def visible_tenant(request: Request) -> str:
    """The tenant in the URL. Raises `UnknownTenant` when it never existed, or when the user may not see it."""
    return visible_entry(request).tenant_id


def visible_entry(request: Request) -> StoredConfig:
    """The newest configuration of the tenant in the URL, removed or not. Raises as `visible_tenant`."""
    return _visible_history(request)[-1]


def configured(request: Request) -> StoredConfig:
    """The newest configuration of the tenant in the URL. Raises `UnknownTenant` when the tenant was removed."""
    entry = visible_entry(request)
    if entry.document is None:
        raise UnknownTenant(
            f"tenant {entry.tenant_id} was removed", "its programs and earlier configurations are still here"
        )
    return entry


def _visible_history(request: Request) -> list[StoredConfig]:
    tenant, user = request.path_params["tenant"], request.user
    dashboard = dashboard_of(request)
    if user.sees(tenant) and (history := dashboard.parts.configs.history(tenant)):
        return history
    hint = did_you_mean(tenant, dashboard.configs(user))
    raise UnknownTenant(f"there is no tenant {tenant[:200]!r}", f"{hint}the overview lists those that you may see")
