"""Converts DSPy programs to stored programs and back."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import dspy
from pydantic import TypeAdapter, ValidationError

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.modules.answer_format import CHAT, AnswerFormat, answer_format, in_format, set_answer_format
from autoopt_pipeline.modules.cascade import cascades_in
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.named_model import name_model, named_model
from autoopt_pipeline.modules.spec import Label, ModuleSpec, query_of
from autoopt_pipeline.registry.records import Program, check_models
from autoopt_pipeline.registry.stored_router import FindEncoder, decode_router, encode_router, encoder_in, no_encoder


def fingerprint(spec: ModuleSpec, labels: Sequence[Label], program: dspy.Module) -> str:
    """Return a hash of the predictors with their fields' names, order and types, which a stored state must match.

    It includes a module's fixed labels, but not a tenant's agents, because these change. It is needed because DSPy
    restores fields by position and loads the state of another signature without an error.
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
    """Return the stored form of a program."""
    state, cascades = program.dump_state(), cascades_in(program)
    for predictor in state.values():
        for demo in predictor.get("demos", ()):
            demo.pop(SOURCE, None)
    lms = {name: asked for name, predictor in program.named_predictors() if (asked := named_model(predictor.signature))}
    return Program(
        format=2 if lms else 1,
        tenant_id=tenant_id,
        module=spec.name,
        fingerprint=fingerprint(spec, labels, program),
        labels=[label.name for label in labels],
        answer_formats={
            name: asked_in
            for name, predictor in program.named_predictors()
            if (asked_in := answer_format(predictor.signature)) != CHAT
        },
        lms=lms,
        routers={cascade.module: encode_router(cascade) for cascade in cascades},
        router_sources={cascade.module: list(cascade.sources) for cascade in cascades},
        state=state,
        demo_sources={
            name: [demo.get(SOURCE) for demo in predictor.demos] for name, predictor in program.named_predictors()
        },
    )


def deserialize(
    spec: ModuleSpec,
    labels: Sequence[Label],
    stored: Program,
    models: Collection[str] | None = None,
    *,
    encoder: Path | None = None,
) -> dspy.Module:
    """Return the DSPy program of a stored one, with the current labels. `encoder` is the sentence encoder's folder.

    Demos whose answer is a label that no longer exists are left out. `models` are the names of the language models that
    can be asked; None if they are not known. Raises `InvalidArtifact` if the program names another model, if the
    module's signature has changed since, if the state is not one that `serialize` writes, or if a local router needs
    another encoder.
    """
    if models is not None:
        check_models(stored, models)
    return _restored(spec, labels, stored, encoder_in(encoder))


def _restored(spec: ModuleSpec, labels: Sequence[Label], stored: Program, find_encoder: FindEncoder) -> dspy.Module:
    program = spec.build_program(labels)
    if stored.fingerprint != fingerprint(spec, labels, program):
        raise InvalidArtifact(
            f"{stored.tenant_id}/{stored.module}: the program was made for another signature of the module",
            "the next promotion replaces it; until then the baseline serves",
        )
    signatures = {name: predictor.signature for name, predictor in program.named_predictors()}
    foreign = InvalidArtifact(
        f"{stored.tenant_id}/{stored.module}: the program's state was not written by autoopt",
        "find out who wrote it, and activate another version",
    )
    if not signatures.keys() <= stored.predictors.keys():
        raise foreign
    try:
        program.load_state(stored.state)
    except Exception as e:  # DSPy does not document what it raises
        raise foreign from e
    for name, predictor in program.named_predictors():
        # The fields' descriptions name the labels, which must be the current ones.
        predictor.signature = signatures[name].with_instructions(predictor.signature.instructions)
        predictor.demos = [
            {**demo, SOURCE: source} for demo, source in stored.demos(name) if _fits(signatures[name], demo)
        ]
        set_answer_format(predictor, stored.answer_formats.get(name, CHAT))
        if name in stored.lms:
            name_model(predictor, stored.lms[name])
    return _with_routers(spec, labels, stored, program, find_encoder)


def _with_routers(
    spec: ModuleSpec, labels: Sequence[Label], stored: Program, program: dspy.Module, find_encoder: FindEncoder
) -> dspy.Module:
    for module, router in stored.routers.items():
        sources = stored.router_sources.get(module, ())
        if module == spec.name:
            program = decode_router(spec, labels, program, router, sources, find_encoder)
        for part in spec.parts:
            if part.name == module:
                model = getattr(program, module)
                own = decode_router(part, part.labels or labels, model, router, sources, find_encoder)
                setattr(program, module, own)
    return program


def instantiate(stored: Program | None, module: str, labels: Sequence[str]) -> dspy.Module:
    """Return the DSPy program of a stored one, or of the module's baseline for None, with these labels.

    It is for showing and comparing: a local router with a sentence encoder does not answer. Raises `InvalidArtifact` if
    it was made for another signature.
    """
    spec = get_module(module)
    choices = spec.labels or tuple(Label(name) for name in labels)
    return spec.build_program(choices) if stored is None else _restored(spec, choices, stored, no_encoder)


def compose(
    spec: ModuleSpec,
    labels: Sequence[Label],
    parts: Mapping[str, Program],
    refused: Callable[[ModuleSpec, InvalidArtifact], None] | None = None,
    baseline_format: AnswerFormat = CHAT,
    models: Collection[str] | None = None,
    *,
    encoder: Path | None = None,
) -> dspy.Module:
    """Return the program that serves if a module has no active version: its baseline with the programs of its parts.

    `parts` holds the stored programs by part. If one cannot be used, `refused` is called and the part's baseline takes
    its place; without `refused`, `InvalidArtifact` is raised as in `deserialize`. Baselines use `baseline_format`.
    `models` and `encoder` are as in `deserialize`.
    """
    program = in_format(spec.build_program(labels), baseline_format)
    for part in spec.parts:
        if part.name not in parts:
            continue
        try:
            stored, choices = parts[part.name], part.labels or labels
            setattr(program, part.name, deserialize(part, choices, stored, models, encoder=encoder))
        except InvalidArtifact as e:
            if refused is None:
                raise
            refused(part, e)
    return program


# Key of a demo for its example's query, if the predictor's fields lack a part of it. DSPy only shows a predictor's own
# fields, and no field has a name with spaces.
ASKED = "asked of the module"


# Key of a `dspy.Example`, and of the demos made from it, with the id of its span. DSPy hides fields named dspy_*. It is
# stored in the manifest instead of the program.
SOURCE = "dspy_source"


def queries_shown(program: dspy.Module) -> set[str]:
    """Return the queries of all demos that a program shows to the model."""
    return {query for _, query in demos_shown(program)}


def traces_learnt(program: dspy.Module) -> set[str]:
    """Return the ids of all traces that a program's local routers learnt from."""
    return {trace for cascade in cascades_in(program) for trace in cascade.sources}


def demos_shown(program: dspy.Module) -> Iterator[tuple[str | None, str]]:
    """Yield the source (None if unknown) and the query of each demo that a program shows to the model."""
    for predictor in program.predictors():
        for demo in predictor.demos:
            yield demo.get(SOURCE), demo.get(ASKED) or demo_query(predictor.signature, demo)


def demo_query(signature: type[dspy.Signature], demo: Mapping[str, Any]) -> str:
    """Return the query in a demo's own fields."""
    return query_of({name: demo.get(name, "") for name in signature.input_fields})


def _fits(signature: type[dspy.Signature], demo: Mapping[str, Any]) -> bool:
    """Whether every answer of a demo is still allowed."""
    for name, info in signature.output_fields.items():
        if name in demo:
            try:
                kind: Any = info.annotation
                TypeAdapter(kind).validate_python(demo[name])
            except ValidationError:
                return False
    return True
