"""Making stored programs for tests, by hand: what a real language model would have written."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dspy

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.program_cost import ProgramCost
from autoopt_pipeline.registry.records import Manifest, Program, new_version_id
from autoopt_pipeline.registry.serialization import serialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.rollout import roll_out
from autoopt_pipeline.tenants.config import RolloutPolicy

AT = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = (Label("search_agent"), Label("report_agent"))
SLOW, FAST = (
    ProgramCost(
        decisions=40,
        lm_calls=1,
        input_tokens=read,
        output_tokens=12,
        cached_tokens=0,
        dollars=dollars,
        timed=40,
        seconds_p50=p50,
        seconds_p95=p95,
    )
    for read, dollars, p50, p95 in ((2938, None, 1.2, 2.5), (300, 0.00012, 0.4, 0.9))
)
"""Two costs of a decision; no price is known of the first."""


def made_program(
    tenant: str,
    module: str = "routing",
    *,
    demos: Sequence[str] = (),
    instructions: Mapping[str, str] | None = None,
    labels: Sequence[Label] = LABELS,
) -> Program:
    """A module's program with a demo for each query in its every predictor, and with these instructions."""
    spec = get_module(module)
    program = spec.build_program(spec.labels or labels)
    for name, predictor in program.named_predictors():
        predictor.demos = [dspy.Example(query=query, reasoning="it asks", confidence=0.9) for query in demos]
        if instructions and name in instructions:
            predictor.signature = predictor.signature.with_instructions(instructions[name])
    return serialize(spec, tenant, spec.labels or labels, program)


def manifest_of(
    program: Program, version: str, *, at: datetime = AT, optimizer: str = "coverage-16", verdict: str = "promoted"
) -> Manifest:
    return Manifest(
        version=version,
        program_sha256=program.digest,
        created_at=at,
        demo_sources=program.demo_sources,
        run_id="r",
        parent=None,
        verdict=verdict,
        reason="",
        window_start=at,
        window_end=at,
        examples={},
        provenance={},
        incumbent_score=0.1,
        candidate_score=0.9,
        gate={"alpha": 0.05},
        optimizer=optimizer,
        seed=9,
        lm="stand-in",
        stand_in=True,
        lm_calls=1,
        lm_tokens=1,
        packages={},
    )


def store(
    artifacts: VersionStore,
    program: Program,
    number: int = 0,
    *,
    optimizer: str = "coverage-16",
    active: bool = False,
    changes: Mapping[str, object] | None = None,
) -> str:
    """Save a program as a version of minute `number`, and make it active where asked.

    `changes` are fields of its manifest.
    """
    at = AT + timedelta(minutes=number)
    version = new_version_id(program, at)
    manifest = manifest_of(program, version, at=at, optimizer=optimizer)
    artifacts.save(program, manifest.model_copy(update=changes))
    if active:
        before = artifacts.active()
        artifacts.transition(version, expected=before.version if before else None, actor="t", reason="")
    return version


def program(text: str, tenant: str = "acme:eu") -> Program:
    return Program(tenant_id=tenant, module="routing", fingerprint="f", labels=["a", "b"], state={"demos": [text]})


def save(artifacts: VersionStore, text: str, *, tenant: str = "acme:eu") -> str:
    stored = program(text, tenant)
    version = f"20260101T000000Z-{stored.digest[:8]}"
    artifacts.save(stored, manifest_of(stored, version))
    return version


def artifacts(root: Path, tenant: str = "acme", module: str = "routing") -> VersionStore:
    return VersionStore(ObjectStore(str(root)), tenant, module)


def bring(artifacts: VersionStore, version: str, settings: RolloutPolicy) -> None:
    active = artifacts.active()
    before = active.version if active else None
    roll_out(artifacts, version, expected=before, actor="run 1", reason="better", policy=settings)
