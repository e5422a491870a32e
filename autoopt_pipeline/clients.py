"""Connections to the stores and servers that the process settings name. Each one opens on first use."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Program
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.timeouts import AS_CONFIGURED, Patience


@dataclass
class Connections:
    """The stores and servers of a process. `patience` limits how long it waits for Phoenix."""

    settings: Settings
    patience: Patience = AS_CONFIGURED

    @cached_property
    def configs(self) -> TenantConfigStore:
        return open_config_store(self.settings.resolved_config_store_url)

    @cached_property
    def phoenix(self) -> Phoenix:
        key = self.settings.phoenix_api_key
        return Phoenix(
            self.settings.phoenix_endpoint,
            api_key=key.get_secret_value() if key else None,
            timeout_seconds=self.settings.phoenix_timeout_seconds,
            patience=self.patience,
        )

    @cached_property
    def files(self) -> ObjectStore:
        return ObjectStore(self.settings.resolved_artifacts_url)

    def artifacts(self, tenant_id: str, module: str) -> VersionStore:
        return VersionStore(self.files, tenant_id, module)

    def active_parts(
        self, tenant_id: str, spec: ModuleSpec, refused: Callable[[ModuleSpec, InvalidArtifact], None]
    ) -> dict[str, Program]:
        """Load the active programs of a composed module's parts, as `active_parts` does."""
        return active_parts(lambda part: self.artifacts(tenant_id, part), spec, refused)


def active_parts(
    artifacts_of: Callable[[str], VersionStore],
    spec: ModuleSpec,
    refused: Callable[[ModuleSpec, InvalidArtifact], None],
) -> dict[str, Program]:
    """Load the active programs of a composed module's parts. Calls `refused` for a damaged one, and skips it."""
    programs = {}
    for part in spec.parts:
        artifacts = artifacts_of(part.name)
        if active := artifacts.active():
            try:
                programs[part.name] = artifacts.load(active.version)
            except InvalidArtifact as e:
                refused(part, e)
    return programs
