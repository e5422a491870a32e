"""The overview of many tenants takes what serves from an index, and shows the same."""

from datetime import UTC, datetime
from pathlib import Path

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.status.fleet_decisions import FleetDecisions
from autoopt_pipeline.status.module_status import tenant_standings
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from tests.support.stored_programs import made_program
from tests.support.stored_programs import store as stored_program
from tests.support.tenant_history import configure, failed_run, materialize


def test_the_index_shows_what_the_files_show(home: Path, store: TenantConfigStore, tenant: str) -> None:
    configure(store, tenant, modules={"routing": {}, "modality": {}, "cross_modal": {}})
    files = ObjectStore(str(home / ".autoopt" / "artifacts"))
    routing, modality = (VersionStore(files, tenant, module) for module in ("routing", "modality"))
    one = stored_program(routing, made_program(tenant, demos=["a"]), 1, active=True)
    two = stored_program(routing, made_program(tenant, demos=["b"]), 2, active=True)
    routing.transition(one, expected=two, actor="marta", reason="errors rose")
    stored_program(modality, made_program(tenant, "modality", demos=["a"]), 1, active=True)

    def shown(fleet: FleetDecisions | None = None) -> dict[str, tuple[object, ...]]:
        with open_instance(home) as instance:
            connections = Connections(load_settings())
            now, stored = datetime.now(UTC), connections.configs.current()
            rows = tenant_standings(stored, instance, connections, now=now, fleet=fleet)
        return {
            row.module: (row.active, row.active_score, row.rolled_back, row.health, row.verdict, row.error)
            for row in rows
        }

    by_files, by_index = shown(), shown(FleetDecisions())
    assert by_index == by_files
    assert by_files["routing"][:2] == (one, 0.9)
    assert by_files["routing"][2] is not None
    assert by_files["cross_modal"][:3] == (None, None, None)


def test_a_refresh_of_the_fleet_shows_what_a_first_look_shows(
    home: Path, store: TenantConfigStore, tenant: str
) -> None:
    """Whatever has happened meanwhile: only what it concerns is decided anew."""
    other, gone = f"{tenant}-b", f"{tenant}-c"
    for name in (tenant, other, gone):
        configure(store, name, optimization_interval_seconds=3600)
    fleet, connections = FleetDecisions(), Connections(load_settings())
    files = ObjectStore(str(home / ".autoopt" / "artifacts"))
    with open_instance(home) as instance:

        def outcome(name: str, module: str) -> None:
            materialize(instance, name, module, traces=10, end=datetime.now(UTC))

        def shown(fleet: FleetDecisions | None = None) -> dict[tuple[str, str], tuple[object, ...]]:
            now = datetime.now(UTC)
            stored = {key: entry for key, entry in connections.configs.current().items() if key.startswith(tenant)}
            rows = tenant_standings(stored, instance, connections, now=now, fleet=fleet)
            return {
                (row.tenant_id, row.module): (row.decision.reason, row.active, row.health, row.attempts) for row in rows
            }

        happenings = [
            lambda: None,
            lambda: outcome(tenant, "routing"),
            lambda: failed_run(instance, other, ["routing"]),
            lambda: stored_program(
                VersionStore(files, other, "modality"), made_program(other, "modality"), active=True
            ),
            lambda: configure(store, tenant, modules={"routing": {}}),
            lambda: store.write(other, {"tenant_id": other, "modules": 5}),
            lambda: configure(store, other, modules={"modality": {}, "cross_modal": {}}),
            lambda: store.write(gone, None),
            lambda: outcome(other, "cross_modal"),
        ]
        seen = []
        for happen in happenings:
            happen()
            seen.append(shown(fleet))
            assert seen[-1] == shown()
    assert len({repr(each) for each in seen}) == len(happenings)
    assert gone not in {name for name, _ in fleet.attempts}
