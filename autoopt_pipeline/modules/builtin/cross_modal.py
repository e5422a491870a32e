"""Decides whether to answer from two kinds of content together, and from which."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoopt_pipeline import span_contract
from autoopt_pipeline.modules.builtin.modality import MODALITY
from autoopt_pipeline.modules.coercion import boolean, number, parse_json, stripped
from autoopt_pipeline.modules.labeling import (
    GroundTruth,
    Unusable,
    check_whole,
    collect_examples,
    find_judged,
    make_example,
    read_attribute,
    read_inputs,
    read_text,
    read_verdict,
)
from autoopt_pipeline.modules.scoring import FUSE, SINGLE
from autoopt_pipeline.modules.similarity import group_near_duplicates, normalize_query
from autoopt_pipeline.modules.spec import (
    Annotation,
    Example,
    ExampleSet,
    Label,
    LoggedDecision,
    ModuleSpec,
    Provenance,
    Values,
)

# Minimum gain over not fusing. Below it, the second search is not worth its cost.
MIN_GAIN = 0.05

# Minimum outcomes of similar queries on each side of a comparison. With fewer, the difference would be chance.
MIN_OUTCOMES = 2

NONE = "none"

_NAMING = ("primary", "secondary")

MODALITIES = tuple(label.name for label in MODALITY.labels or () if label.name != "mixed")


def build_examples(spec: ModuleSpec, labels: Sequence[Label], decisions: Sequence[LoggedDecision]) -> ExampleSet:
    """Build examples whose label is the gain over not fusing, never the quality of one outcome.

    An annotation judges the decision, or its score is the gain. Without annotations, fused and unfused outcomes of
    similar queries are compared. The right modalities are known only if an annotation confirms the whole decision or
    names them.
    """
    gains = _measured_gains(spec, decisions)

    def build(decision: LoggedDecision) -> Example:
        check_whole(spec, decision)
        detected = read_modalities(decision.attributes, spec.contract.inputs["modalities"])
        if len(detected) < 2:
            raise Unusable("fewer than two modalities were detected")
        as_read = {**decision.attributes, spec.contract.inputs["modalities"][0]: modalities_text(detected)}
        inputs = read_inputs(spec, replace(decision, attributes=as_read))
        right = _right(spec, decision, detected, gains.get(decision.span_id))
        return make_example(spec, decision, inputs, right, _assumed(right, detected))

    return collect_examples(decisions, build)


@dataclass(frozen=True)
class Detected:
    """A modality and the application's confidence in it, from 0 to 1."""

    modality: str
    confidence: float


def read_modalities(attributes: Mapping[str, Any], paths: Sequence[str]) -> list[Detected]:
    """Return the detected modalities once each, most confident first. Raises `Unusable` if they break the contract."""
    value = read_attribute(attributes, paths)
    if value is None:
        raise Unusable("no modalities", malformed=True)
    if isinstance(value, str) and (value := parse_json(value)) is None:
        raise Unusable("modalities are no JSON", malformed=True)
    if not isinstance(value, list | tuple) or not all(
        isinstance(item, Mapping) and "modality" in item and "confidence" in item for item in value
    ):
        raise Unusable("modalities are no list of modality and confidence", malformed=True)
    surest: dict[str, float] = {}
    for item in value:
        modality, confidence = str(stripped(item["modality"])).lower(), number(item["confidence"])
        if modality not in MODALITIES or confidence is None:
            raise Unusable("a detected modality is unknown or has no confidence", malformed=True)
        surest[modality] = max(confidence, surest.get(modality, confidence))
    detected = [Detected(modality, confidence) for modality, confidence in surest.items()]
    return sorted(detected, key=lambda d: (-d.confidence, d.modality))


def modalities_text(detected: Iterable[Detected]) -> str:
    """Return them in the program's form: `video 0.82, document 0.64`."""
    return ", ".join(f"{d.modality} {d.confidence:.2f}" for d in detected)


def parse_fusion(label: str) -> dict[str, str]:
    """Parse an annotator's text: `fuse` or `single`, or with modalities `fuse: video + text` or `single: video`."""
    verdict, named, modalities = label.lower().partition(":")
    fuse = verdict.strip()
    names = [modality.strip() for modality in modalities.split("+")] if named else []
    wanted = {FUSE: 2, SINGLE: 1}.get(fuse)
    if (
        wanted is None
        or (named and len(names) != wanted)
        or len({*names}) < len(names)
        or not {*names} <= {*MODALITIES}
    ):
        raise Unusable("the right fusion cannot be read")
    return {"fuse": fuse, **dict(zip(_NAMING, [*names, NONE], strict=False))} if names else {"fuse": fuse}


def _right(spec: ModuleSpec, decision: LoggedDecision, detected: list[Detected], measured: float | None) -> GroundTruth:
    own = _own(spec, decision, detected)
    opposite = {"fuse": SINGLE if own["fuse"] == FUSE else FUSE} if own else None

    def read(annotation: Annotation) -> Values | None:
        labelled = read_verdict(annotation, own, parse_fusion, opposite)
        # A score beside a label may belong to the label, as in Phoenix's categorical configurations.
        gain = number(annotation.score)
        return labelled or (_decided(gain) if gain is not None else None)

    judged = find_judged(spec, decision, read)
    if judged:
        return judged
    if measured is None:
        raise Unusable("nobody reviewed it, and no like query was answered the other way")
    return GroundTruth(_decided(measured), Provenance.OUTCOME, False)


def _decided(gain: float) -> dict[str, str]:
    return {"fuse": FUSE if gain >= MIN_GAIN else SINGLE}


def _own(spec: ModuleSpec, decision: LoggedDecision, detected: list[Detected]) -> dict[str, str] | None:
    """Return the application's decision, with the modalities it named if they fit, or None without a decision."""
    fused = _fused(spec, decision)
    if fused is None:
        return None
    own = {"fuse": FUSE if fused else SINGLE}
    known = {d.modality for d in detected}
    named = [(read_text(decision.attributes, spec.contract.answers[field]) or NONE).lower() for field in _NAMING]
    fits = known.issuperset(named) and named[0] != named[1] if fused else named[0] in known and named[1] == NONE
    return {**own, **dict(zip(_NAMING, named, strict=True))} if fits else own


def _assumed(right: GroundTruth, detected: list[Detected]) -> dict[str, str]:
    """Return the modalities with the highest confidence if the right ones are unknown."""
    surest = (detected[0].modality, detected[1].modality if right.values["fuse"] == FUSE else NONE)
    return {field: name for field, name in zip(_NAMING, surest, strict=True) if field not in right.values}


def _measured_gains(spec: ModuleSpec, decisions: Sequence[LoggedDecision]) -> dict[str, float]:
    """By span id: mean quality of fused minus unfused outcomes of similar queries, if there are enough."""
    quality: dict[str, dict[str, list[float]]] = defaultdict(lambda: {FUSE: [], SINGLE: []})
    query_of_span: dict[str, str] = {}
    for decision in decisions:
        query = read_text(decision.attributes, spec.contract.inputs["query"])
        outcome, fused = _quality(spec, decision), _fused(spec, decision)
        if query is None or outcome is None or fused is None:
            continue
        query_of_span[decision.span_id] = normalized = normalize_query(query)
        quality[normalized][FUSE if fused else SINGLE].append(outcome)
    gain_of_query: dict[str, float] = {}
    for group in group_near_duplicates(sorted(quality)):
        fused_ones = [q for query in group for q in quality[query][FUSE]]
        single_ones = [q for query in group for q in quality[query][SINGLE]]
        if min(len(fused_ones), len(single_ones)) >= MIN_OUTCOMES:
            gain = sum(fused_ones) / len(fused_ones) - sum(single_ones) / len(single_ones)
            gain_of_query |= dict.fromkeys(group, gain)
    return {span: gain_of_query[query] for span, query in query_of_span.items() if query in gain_of_query}


def _quality(spec: ModuleSpec, decision: LoggedDecision) -> float | None:
    quality = number(read_attribute(decision.attributes, spec.contract.quality))
    if quality is None:
        return None
    failed = decision.failed or boolean(read_attribute(decision.attributes, spec.contract.success)) is False
    return 0.0 if failed else min(max(quality, 0.0), 1.0)


def _fused(spec: ModuleSpec, decision: LoggedDecision) -> bool | None:
    return boolean(read_attribute(decision.attributes, spec.contract.answers["fuse"]))


CROSS_MODAL = ModuleSpec(
    name="cross_modal",
    description="Whether a query is better answered from two kinds of content at once, and from which.",
    contract=span_contract.CROSS_MODAL,
    outputs=("fuse", "primary", "secondary"),
    labels=(
        Label(FUSE, "answer from two modalities together"),
        Label(SINGLE, "answer from the primary modality alone"),
    ),
    program="autoopt_pipeline.modules.builtin.programs:cross_modal_program",
    examples="autoopt_pipeline.modules.builtin.cross_modal:build_examples",
    grading="autoopt_pipeline.modules.scoring:FUSION",
)
