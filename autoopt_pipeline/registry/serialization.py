"""Between a DSPy program and its stored state."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import dspy
from pydantic import TypeAdapter, ValidationError

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.modules.answer_format import CHAT, AnswerFormat, answer_format, in_format, set_answer_format
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label, ModuleSpec, query_of
from autoopt_pipeline.registry.records import Program


def fingerprint(spec: ModuleSpec, labels: Sequence[Label], program: dspy.Module) -> str:
    """What a state must agree with: the predictors with their fields' names, order and types.

    A module's fixed labels belong to it; a tenant's agents come and go, so they do not. DSPy restores fields
    by position and would load a state of another signature without a word.
    """
    agents = "" if spec.labels else str(Literal[tuple(label.name for label in labels)])  # ty: ignore[invalid-type-form]
    shape = []
    for name, predictor in program.named_predictors():
        fields = [
            [field, str(info.annotation).replace(agents, "label") if agents else str(info.annotation)]
            for field, info in predictor.signature.fields.items()
        ]
        shape.append([name, fields, len(predictor.signature.input_fields)])
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]


def serialize(spec: ModuleSpec, tenant_id: str, labels: Sequence[Label], program: dspy.Module) -> Program:
    """A program as it is stored."""
    state = program.dump_state()
    for predictor in state.values():
        for demo in predictor.get("demos", ()):
            demo.pop(SOURCE, None)
    return Program(
        tenant_id=tenant_id,
        module=spec.name,
        fingerprint=fingerprint(spec, labels, program),
        labels=[label.name for label in labels],
        answer_formats={
            name: wanted
            for name, predictor in program.named_predictors()
            if (wanted := answer_format(predictor.signature)) != CHAT
        },
        state=state,
        demo_sources={
            name: [demo.get(SOURCE) for demo in predictor.demos] for name, predictor in program.named_predictors()
        },
    )


def deserialize(spec: ModuleSpec, labels: Sequence[Label], stored: Program) -> dspy.Module:
    """A stored program, ready to answer with the labels of today.

    Demos that answer with a label that no longer exists are left out. Raises `InvalidArtifact` when the
    module's signature has changed since, or when the state holds what no program of ours does.
    """
    program = spec.build_program(labels)
    if stored.fingerprint != fingerprint(spec, labels, program):
        raise InvalidArtifact(
            f"{stored.tenant_id}/{stored.module}: the program was made for another signature of the module",
            "it is replaced by the next promotion; until then the baseline serves",
        )
    signatures = {name: predictor.signature for name, predictor in program.named_predictors()}
    foreign = InvalidArtifact(
        f"{stored.tenant_id}/{stored.module}: the program's state is none that was made here",
        "find out who wrote it, and activate another",
    )
    if not signatures.keys() <= stored.predictors.keys():
        raise foreign
    try:
        program.load_state(stored.state)
    except Exception as e:  # DSPy raises what it stumbles upon
        raise foreign from e
    for name, predictor in program.named_predictors():
        # The fields' descriptions name the labels: those of today, not those of the day it was stored.
        predictor.signature = signatures[name].with_instructions(predictor.signature.instructions)
        predictor.demos = [
            {**demo, SOURCE: source} for demo, source in stored.demos(name) if _fits(signatures[name], demo)
        ]
        set_answer_format(predictor, stored.answer_formats.get(name, CHAT))
    return program


def instantiate(stored: Program | None, module: str, labels: Sequence[str]) -> dspy.Module:
    """A stored program (None: the module's baseline), ready to be asked or compared, with these labels.

    Raises `InvalidArtifact` when it was made for another signature, and so can serve nobody.
    """
    spec = get_module(module)
    choices = spec.labels or tuple(Label(name) for name in labels)
    return spec.build_program(choices) if stored is None else deserialize(spec, choices, stored)


def compose(
    spec: ModuleSpec,
    labels: Sequence[Label],
    parts: Mapping[str, Program],
    refused: Callable[[ModuleSpec, InvalidArtifact], None] | None = None,
    baseline_format: AnswerFormat = CHAT,
) -> dspy.Module:
    """The program that serves where a module has no active version of its own.

    The baseline, with the stored programs of those parts that have one. `refused` is told of a part whose program
    cannot be used, and its baseline is taken; without `refused` that raises `InvalidArtifact` as `deserialize`.
    Baselines are asked in `baseline_format`.
    """
    program = in_format(spec.build_program(labels), baseline_format)
    for part in spec.parts:
        if part.name not in parts:
            continue
        try:
            setattr(program, part.name, deserialize(part, part.labels or labels, parts[part.name]))
        except InvalidArtifact as e:
            if refused is None:
                raise
            refused(part, e)
    return program


ASKED = "asked of the module"
"""Key of a demo under which it keeps its example's query, where its predictor is told another part of it. DSPy shows a
predictor's own fields only, and no field has a name with spaces."""


SOURCE = "dspy_source"
"""Key of a `dspy.Example`, and of the demos that are made of it, with the id of the span that it came from. DSPy shows
no field called dspy_*, and it is stored in the manifest instead of the program."""


def queries_shown(program: dspy.Module) -> set[str]:
    """The queries of all demos that a program shows to the model."""
    return {query for _, query in demos_shown(program)}


def demos_shown(program: dspy.Module) -> Iterator[tuple[str | None, str]]:
    """The source (None is unknown) and the query of each demo that a program shows to the model."""
    for predictor in program.predictors():
        for demo in predictor.demos:
            yield demo.get(SOURCE), demo.get(ASKED) or told(predictor.signature, demo)


def told(signature: type[dspy.Signature], demo: Mapping[str, Any]) -> str:
    """What a demo says that its predictor was asked."""
    return query_of({name: demo.get(name, "") for name in signature.input_fields})


def _fits(signature: type[dspy.Signature], demo: Mapping[str, Any]) -> bool:
    """Whether every answer of a demo is one that may still be given."""
    for name, info in signature.output_fields.items():
        if name in demo:
            try:
                kind: Any = info.annotation
                TypeAdapter(kind).validate_python(demo[name])
            except ValidationError:
                return False
    return True
