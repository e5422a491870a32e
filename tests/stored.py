"""Making stored programs for tests, by hand: what a real language model would have written."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import dspy

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.registry.records import Manifest, Program, new_version_id
from autoopt_pipeline.registry.serialization import serialize
from autoopt_pipeline.registry.version_store import VersionStore

AT = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = (Label("search_agent"), Label("report_agent"))


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
        artifacts.move(version, expected=before.version if before else None, by="t", why="")
    return version
