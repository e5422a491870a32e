"""Instructions that tenants share with each other: at most one publication for each tenant's module.

    {root}/_shared/{module}/{tenant}.json

No tenant's own folder can be called so, and no name of a tenant stands inside what another one stores.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.tenant_id import safe_name

SHARED_PRIOR = "shared-prior"
"""The optimizer of versions that start from shared instructions."""

SHARED_FOLDER = "_shared"  # safe names begin with a letter or a digit


class SharedInstructions(BaseModel):
    """What a tenant's last promotion taught, by predictor: only instructions that differ from the baseline's.

    `gain` is the proven gain in score (0 to 1) on `cases` held-out traces, of the whole program. `labels` are those
    that the program could answer with where they are the tenant's own, for instructions may name them.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    tenant_id: str
    module: str
    version: str
    published_at: datetime
    fingerprint: str
    lm: str
    gain: float
    cases: int
    labels: list[str]
    instructions: dict[str, str]


class SharedStore:
    """One module's publications."""

    def __init__(self, files: ObjectStore, module: str) -> None:
        self._files = files
        self._folder = f"{SHARED_FOLDER}/{module}"
        self.module = module

    def publish(self, shared: SharedInstructions) -> None:
        """Publish in place of what the tenant published before."""
        self._files.replace(self._path(shared.tenant_id), shared.model_dump_json(indent=1).encode())

    def withdraw(self, tenant_id: str) -> bool:
        """Delete what a tenant published. False where there is nothing."""
        return self._files.delete(self._path(tenant_id))

    def read(self, tenant_id: str) -> SharedInstructions | None:
        """What a tenant published, or None. Raises `InvalidArtifact` when it is damaged or another tenant's."""
        raw = self._files.read(self._path(tenant_id))
        if raw is None:
            return None
        try:
            shared = SharedInstructions.model_validate_json(raw)
        except ValidationError:
            shared = None
        if shared is None or (shared.tenant_id, shared.module) != (tenant_id, self.module):
            raise InvalidArtifact(
                f"{tenant_id}/{self.module}: what it shares is damaged", "it is replaced by the next promotion"
            )
        return shared

    def any_published(self) -> bool:
        return bool(self._files.names(self._folder))

    def publishers(self, tenant_ids: Iterable[str]) -> list[str]:
        """Which of these tenants have published anything, in one request; sorted."""
        names = set(self._files.names(self._folder))
        return sorted(tenant for tenant in tenant_ids if f"{safe_name(tenant)}.json" in names)

    def _path(self, tenant_id: str) -> str:
        return f"{self._folder}/{safe_name(tenant_id)}.json"
