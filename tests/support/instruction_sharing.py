"""Tenants that share their instructions, and one that starts from what is shared."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import dspy

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS
from autoopt_pipeline.evaluation.gate import Calibration, Comparison, GateDecision
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.optimization.pipeline import OptimizationJob, optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.optimization.warm_start import Pool, share_instructions, shareable
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.serialization import serialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import RoutingConfigUnified, parse_config
from autoopt_pipeline.tenants.store import write_config
from autoopt_pipeline.tenants.stores.sqlite import SqliteConfigStore
from tests.support.optimizing import decisions, stand_in
from tests.support.stored_programs import AT, manifest_of

ROUTING = get_module("routing")
LABELS = tuple(Label(name) for name in SAMPLE_AGENTS)
BETTER = "Requests to find something are searches. Whatever asks for a shorter form is a summary."


def configure(configs: SqliteConfigStore, tenant: str, **fields: object) -> RoutingConfigUnified:
    agents = [{"name": label.name} for label in LABELS]
    config = parse_config({"tenant_id": tenant, "agents": agents, **fields}, where="test")
    write_config(configs, config)
    return config


def artifacts_of(root: Path, tenant: str) -> VersionStore:
    return VersionStore(ObjectStore(str(root)), tenant, "routing")


def program_with(instructions: str, demos: Sequence[str] = ()) -> dspy.Module:
    program = ROUTING.build_program(LABELS)
    program.decide.signature = program.decide.signature.with_instructions(instructions)
    program.decide.demos = [dspy.Example(query=query, agent=LABELS[0].name) for query in demos]
    return program


def promotion(tenant: str, *, gain: float = 0.3, cases: int = 200) -> Report:
    comparison = Comparison(cases, 0.5, 0.5 + gain, 60, 0, 0.0001)
    return Report(
        tenant_id=tenant,
        module="routing",
        verdict=Verdict.PROMOTED,
        reason="",
        window_start=AT,
        window_end=AT,
        decisions=0,
        examples={},
        provenance={},
        balance={},
        unusable={},
        incumbent_version=None,
        version="v",
        active_version="v",
        lm="stand-in",
        stand_in=True,
        gate=GateDecision(Verdict.PROMOTED, "", 0.05, comparison, Calibration(0.2, 0.1), None),
    )


def publish(
    pool: Pool,
    configs: SqliteConfigStore,
    tenant: str,
    instructions: str = BETTER,
    *,
    gain: float = 0.3,
    seen: Sequence[str] = (),
    **fields: object,
) -> list[str]:
    """A tenant that shares, and the promotion that it publishes."""
    configure(configs, tenant, **{"share_instructions": True, **fields})
    program = program_with(instructions, demos=["a demo of the donor's own"])
    baseline = ROUTING.build_program(LABELS)
    fit = shareable(ROUTING, LABELS, program, [baseline], None, tenant, seen)
    manifest = manifest_of(serialize(ROUTING, tenant, LABELS, program), "v").model_copy(update={"shareable": fit})
    return share_instructions(pool, ROUTING, LABELS, promotion(tenant, gain=gain), manifest, program)


def started(pool: Pool, root: Path, config: RoutingConfigUnified) -> Report:
    """The taker's run with too little data."""
    job = OptimizationJob(ROUTING, config, decisions(30), AT - timedelta(days=1), AT, "run", pool=pool)
    return optimize(job, stand_in(), artifacts_of(root, config.tenant_id))
