"""Between a DSPy program and its stored state."""

import hashlib
import json
from collections.abc import Sequence

import dspy

from autoopt_pipeline.artifacts.store import Program
from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.modules.spec import Label, ModuleSpec


def fingerprint(spec: ModuleSpec, program: dspy.Module) -> str:
    """What a state must agree with: the predictors with their fields' names, order and types.

    A module's fixed labels belong to it; a tenant's agents come and go, so they do not. DSPy restores fields
    by position and would load a state of another signature without a word.
    """
    shape = []
    for name, predictor in program.named_predictors():
        fields = [
            [field, _type(info.annotation, spec.output_field if spec.labels is None else None, field)]
            for field, info in predictor.signature.fields.items()
        ]
        shape.append([name, fields, len(predictor.signature.input_fields)])
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]


def pack(spec: ModuleSpec, tenant_id: str, labels: Sequence[Label], program: dspy.Module) -> Program:
    """A program as it is stored."""
    return Program(
        tenant_id=tenant_id,
        module=spec.name,
        fingerprint=fingerprint(spec, program),
        labels=[label.name for label in labels],
        state=program.dump_state(),
    )


def unpack(spec: ModuleSpec, labels: Sequence[Label], stored: Program) -> dspy.Module:
    """A stored program, ready to answer with the labels of today.

    Demos that answer with a label that no longer exists are left out. Raises `InvalidArtifact` when the
    module's signature has changed since.
    """
    program = spec.build_program(labels)
    if stored.fingerprint != fingerprint(spec, program):
        raise InvalidArtifact(
            f"{stored.tenant_id}/{stored.module}: the program was made for another signature of the module",
            "it is replaced by the next promotion; until then the baseline serves",
        )
    signatures = {name: predictor.signature for name, predictor in program.named_predictors()}
    program.load_state(stored.state)
    known = {label.name for label in labels}
    for name, predictor in program.named_predictors():
        # The fields' descriptions name the labels: those of today, not those of the day it was stored.
        predictor.signature = signatures[name].with_instructions(predictor.signature.instructions)
        predictor.demos = [demo for demo in predictor.demos if demo.get(spec.output_field) in known]
    return program


def _type(annotation: object, open_field: str | None, field: str) -> str:
    return "label" if field == open_field else str(annotation)
