"""The overview of many tenants takes what serves from an index, and shows the same."""

from datetime import UTC, datetime
from pathlib import Path

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.status.module_status import ModuleStatus, tenant_standings
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from tests.support.stored_programs import made_program
from tests.support.stored_programs import store as stored_program
from tests.support.tenant_history import configure


def test_the_index_shows_what_the_files_show(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant, modules={"routing": {}, "modality": {}, "cross_modal": {}})
    files = ObjectStore(str(home / ".autoopt" / "artifacts"))
    routing, modality = (VersionStore(files, tenant, module) for module in ("routing", "modality"))
    one = stored_program(routing, made_program(tenant, demos=["a"]), 1, active=True)
    two = stored_program(routing, made_program(tenant, demos=["b"]), 2, active=True)
    routing.transition(one, expected=two, actor="marta", reason="errors rose")
    stored_program(modality, made_program(tenant, "modality", demos=["a"]), 1, active=True)

    def shown(*, by_index: bool) -> dict[str, tuple[object, ...]]:
        with open_instance(home) as instance:
            connections = Connections(load_settings())
            now, stored = datetime.now(UTC), connections.configs.current()
            rows: list[ModuleStatus] = tenant_standings(stored, instance, connections, now=now, by_index=by_index)
        return {
            row.module: (row.active, row.active_score, row.rolled_back, row.health, row.verdict, row.error)
            for row in rows
        }

    by_files, by_index = shown(by_index=False), shown(by_index=True)
    assert by_index == by_files
    assert by_files["routing"][:2] == (one, 0.9)
    assert by_files["routing"][2] is not None
    assert by_files["cross_modal"][:3] == (None, None, None)
