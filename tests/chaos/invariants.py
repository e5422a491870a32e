"""What must hold after every fault, whatever it was. Each raises `AssertionError` naming what is broken."""

import json
from datetime import UTC, datetime
from itertools import pairwise

import dagster as dg

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.failures import causes_of
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.tenant_id import safe_name
from autoopt_pipeline.traces.client import CountRequest
from tests.chaos.world import MIN_SAMPLES, World, marker


def check_all(world: World) -> None:
    nobody_is_forgotten(world)
    nothing_is_learnt_twice(world)
    what_is_active_is_whole_and_passed_the_gate(world)
    nobody_sees_anothers(world)
    every_failure_says_why(world)


def nobody_is_forgotten(world: World) -> None:
    """Every module that is on has learnt from its tenant's traces, but for fewer than would make it due."""
    decisions = world.plan().decisions
    for name, tenant in world.tenants.items():
        if name in world.broken:
            continue
        for module in tenant.modules:
            assert outcomes(world, name, module), f"{name}/{module} never came to an outcome"
            decision = decisions[name, module]
            assert decision.evidence is not None, f"{name}/{module}: {decision.reason}: {decision.detail}"
            assert decision.evidence.total < (decision.need or 0), f"{name}/{module} is due and is not run"


def nothing_is_learnt_twice(world: World) -> None:
    """Between two outcomes of a module there was enough new evidence for the second."""
    for name, tenant in world.tenants.items():
        project = world.phoenix.project(project_name(name))
        assert project, f"{name} has no project"
        for module in tenant.modules:
            totals = [_number(metadata, "annotation_total") for metadata in _materializations(world, name, module)]
            ends = zip(outcomes(world, name, module), totals, strict=True)
            for (one, total), (next_one, next_total) in pairwise(ends):
                wanted = CountRequest(project.id, get_module(module).contract.span_name, one, next_one)
                new = world.phoenix.count([wanted])[wanted] + next_total - total
                assert new >= MIN_SAMPLES, f"{name}/{module}: {new} new between the outcomes {one} and {next_one}"


def what_is_active_is_whole_and_passed_the_gate(world: World) -> None:
    for name, tenant in world.tenants.items():
        for module in tenant.modules:
            artifacts = VersionStore(world.files, name, module)
            transitions = artifacts.transitions()
            for before, after in pairwise(transitions):
                assert after.from_version == before.to_version, (
                    f"{name}/{module}: transition {after.sequence} overtook another"
                )
            active = artifacts.active()
            assert (active.version if active else None) == (transitions[-1].to_version if transitions else None)
            for transition in transitions:
                if transition.to_version:
                    artifacts.load(transition.to_version)
                    manifest = artifacts.manifest(transition.to_version)
                    assert manifest, f"{name}/{module}: {transition.to_version} is not whole"
                    assert manifest.verdict == "promoted", (
                        f"{name}/{module}: {transition.to_version} was {manifest.verdict}"
                    )
                    assert manifest.gate["p_value"] <= manifest.gate["alpha"], (
                        f"{name}/{module}: {transition.to_version}"
                    )


def nobody_sees_anothers(world: World) -> None:
    """No file of a tenant, and no outcome of it, holds a word of another tenant's traffic."""
    for name in world.tenants:
        others = [marker(other).encode() for other in world.tenants if other != name]
        for path in (world.artifacts_folder / safe_name(name)).rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not any(other in content for other in others), f"{path} holds another tenant's words"
        for module in world.tenants[name].modules:
            for text in _metadata(world, name, module):
                assert not any(other.decode() in text for other in others), f"{name}/{module}: {text[:200]}"


def every_failure_says_why(world: World) -> None:
    for run in world.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])):
        assert causes_of(world.instance, run.run_id), f"run {run.run_id} failed and does not say why"
    for tick in world.ticks():
        assert not tick.is_failure or (tick.error and tick.error.message.strip()), "a tick failed without a word"


def outcomes(world: World, tenant: str, module: str) -> list[datetime]:
    """The ends of the windows that a module has learnt from, in the order of the outcomes."""
    found = _materializations(world, tenant, module)
    return [datetime.fromtimestamp(_number(metadata, "window_end"), UTC) for metadata in found]


def _number(metadata: dict[str, dg.MetadataValue], name: str) -> float:
    return float(str(metadata[name].value))


def _metadata(world: World, tenant: str, module: str) -> list[str]:
    return [
        json.dumps({name: str(value.value) for name, value in metadata.items()})
        for metadata in _materializations(world, tenant, module)
    ]


def _materializations(world: World, tenant: str, module: str) -> list[dict[str, dg.MetadataValue]]:
    wanted = dg.AssetRecordsFilter(dg.AssetKey(module), asset_partitions=[tenant])
    records = world.instance.fetch_materializations(wanted, limit=1000, ascending=True).records
    return [dict(record.asset_materialization.metadata) for record in records if record.asset_materialization]
