"""Conversion of values between requests, spans and program inputs."""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from autoopt_pipeline.errors import InvalidRequest
from autoopt_pipeline.modules.builtin.cross_modal import modalities_text, read_modalities
from autoopt_pipeline.modules.coercion import encodable
from autoopt_pipeline.modules.labeling import Unusable, as_text
from autoopt_pipeline.modules.scoring import FUSE
from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.span_contract import CROSS_MODAL_SPAN, SpanContract
from autoopt_pipeline.text import did_you_mean

Attributes = dict[str, str | bool | int | float]


def _check(spec: ModuleSpec, inputs: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` if an input is missing or unknown."""
    contracts = [part.contract for part in spec.parts] or [spec.contract]
    known = {name for contract in contracts for name in contract.inputs} - set(spec.outputs)
    required = {name for contract in contracts for name in contract.required} - set(spec.outputs)
    for name in inputs:
        if name not in known:
            raise InvalidRequest(
                f"{spec.name} has no input {name[:60]!r}", did_you_mean(name, sorted(known), "its inputs are")
            )
    if missing := sorted(name for name in required if inputs.get(name) in (None, "")):
        raise InvalidRequest(f"{spec.name} needs {', '.join(missing)}", "pass it as a keyword")


def program_inputs(spec: ModuleSpec, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the inputs in the form in which training examples are read from spans.

    Raises `InvalidRequest` if an input is missing, unknown or unreadable.
    """
    _check(spec, inputs)
    if spec.contract.span_name == CROSS_MODAL_SPAN and "modalities" in inputs:
        try:
            detected = read_modalities(inputs, ("modalities",))
        except Unusable as e:
            raise InvalidRequest(f"{spec.name}: {e}", 'pass [{"modality": ..., "confidence": ...}, ...]') from None
        inputs = {**inputs, "modalities": modalities_text(detected)}
    return {name: as_text(value) or "" for name, value in inputs.items() if value is not None}


def span_attributes(
    contract: SpanContract, inputs: Mapping[str, Any], values: Mapping[str, Any], confidence: float | None
) -> Attributes:
    """Return a decision's span attributes: each field at its first path, and the OpenInference input and output."""
    if contract.span_name == CROSS_MODAL_SPAN and "fuse" in values:
        values = {**values, "fuse": values["fuse"] == FUSE}
    known = storable({**inputs, **values})
    asked = {name: known[name] for name in contract.inputs if known.get(name) is not None}
    answered = {name: known[name] for name in contract.answers if values.get(name) is not None}
    if confidence is not None:
        answered["confidence"] = confidence
    attributes: Attributes = {}
    objects: dict[str, dict[str, Any]] = defaultdict(dict)
    objects["input.value"] |= asked
    objects["output.value"] |= answered
    paths = {**contract.inputs, **contract.answers, "confidence": contract.confidence}
    for name, value in {**asked, **answered}.items():
        if not paths[name]:  # spans of this module have no confidence
            continue
        attribute, _, key = paths[name][0].partition(":")
        if key:
            objects[attribute][key] = value
        else:
            attributes[attribute] = value if isinstance(value, bool | int | float) else as_text(value) or ""
    for attribute, value in objects.items():
        attributes[attribute] = encodable(json.dumps(value, ensure_ascii=False, default=str))
    return attributes | {"input.mime_type": "application/json", "output.mime_type": "application/json"}


def storable(value: Any) -> Any:
    """Return the value with all text in it made storable, also nested text (see `encodable`)."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {storable(key): storable(inner) for key, inner in value.items()}
    return [storable(inner) for inner in value] if isinstance(value, list | tuple) else value
