"""Copies what the registry knew of a module at an earlier moment, so that a backtest can go on from there."""

from datetime import datetime

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenant_id import safe_name


def copy_as_of(source: ObjectStore, target: ObjectStore, tenant_id: str, module: str, moment: datetime) -> None:
    """Copy the versions, transitions, ledger and tests of a module that were recorded until a moment (UTC).

    A version whose program was deleted since has none in the copy either. Raises `InvalidArtifact` if a record is
    damaged.
    """
    stored, copy = VersionStore(source, tenant_id, module), VersionStore(target, tenant_id, module)
    folder = f"{safe_name(tenant_id)}/{module}"

    def copy_file(path: str) -> None:
        if (content := source.read(path)) is not None:
            target.create(path, content)

    for manifest in stored.list_versions()[0]:
        if manifest.created_at <= moment:
            of_version = f"{folder}/versions/{manifest.version}"
            declined = stored.declined(manifest.version)
            for name in source.names(of_version):
                if name != "declined.json" or (declined and declined.at <= moment):
                    copy_file(f"{of_version}/{name}")
    for transition in stored.transitions():
        if transition.at <= moment:
            copy_file(f"{folder}/transitions/{transition.sequence:08d}.json")
    for entry in stored.ledger():
        if entry.at <= moment:
            copy.charge(entry)
    for step in stored.sequential_test_steps():
        if step.at <= moment:
            copy.add_sequential_test_step(step)
