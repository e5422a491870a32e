"""Erases traces from the programs of a module: withdraws versions, and puts a cleaned one in service.

Every step can be repeated, and finishes what an earlier call left undone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from autoopt_pipeline.erasure.target import ErasureTarget
from autoopt_pipeline.errors import InvalidArtifact, PromotionConflict
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.registry.records import Manifest, Program, program_facts
from autoopt_pipeline.registry.version_store import VersionStore

FORGET = "forget"
"""The actor of the transition to a cleaned version, and the verdict on that version: privacy comes before the gate."""

_WHY = "it held the text of a trace that is to be forgotten"

_TRIES = 5


@dataclass(frozen=True)
class ErasedVersions:
    """The versions that were withdrawn. If the active version was one of them, `before` was replaced by `now`."""

    withdrawn: tuple[str, ...] = ()
    before: str | None = None
    now: str | None = None


def versions_with(artifacts: VersionStore, target: ErasureTarget) -> list[str]:
    """The versions that contain the target or learnt from it, oldest first, damaged and half-written ones too."""
    manifests, _ = artifacts.list_versions()
    known = {manifest.version: manifest for manifest in manifests}
    affected = (
        version for version, raw in artifacts.iter_program_texts() if _contains(raw, known.get(version), target)
    )
    return list(dict.fromkeys(affected))


def erase_from_programs(artifacts: VersionStore, target: ErasureTarget, *, actor: str) -> ErasedVersions:
    """Withdraw every version that contains the target. An active one is replaced by the same program without it.

    Raises `PromotionConflict` when others keep changing the active version, and whatever the artifact store raises.
    """
    for _ in range(_TRIES):
        versions = versions_with(artifacts, target)
        try:
            before, now = _replace_in_service(artifacts, versions, target, actor)
        except PromotionConflict:
            continue
        break
    else:
        raise PromotionConflict(
            f"{artifacts.tenant_id}/{artifacts.module}: the active version keeps changing", "repeat the command"
        )
    for version in versions:
        artifacts.withdraw(version, actor=actor, reason=_WHY)
    if versions:
        artifacts.record_action("erased", actor=actor, text=f"{', '.join(versions)}: {_WHY}")
    return ErasedVersions(tuple(versions), before, now)


def without_target(program: Program, target: ErasureTarget) -> Program:
    """The program without the demos of the target, and with the baseline's instructions where its own quote it.

    A local router that learnt from the target, or from nobody knows what, is left out, so that the model answers all
    requests.
    """
    state, sources = {}, {}
    for name, predictor in program.state.items():
        kept = [(demo, source) for demo, source in program.demos(name) if not target.includes_demo(demo, source)]
        sources[name] = [source for _, source in kept]
        state[name] = {**predictor, "demos": [demo for demo, _ in kept]}
        for key in ("train", "traces"):  # DSPy may keep examples here, and nobody knows their sources
            if key in predictor:
                state[name][key] = [example for example in predictor[key] if not target.is_in(example)]
        instructions = predictor.get("signature", {}).get("instructions", "")
        # The baseline's instructions come from no trace, whatever they say.
        baseline = _baseline_instructions(program.module, tuple(program.labels)).get(name, "")
        if instructions != baseline and target.is_in(instructions):
            state[name]["signature"] = {**predictor["signature"], "instructions": baseline}
    routers = {
        module: router
        for module, router in program.routers.items()
        if module in program.router_sources and target.trace_ids.isdisjoint(program.router_sources[module])
    }
    learnt = {module: traces for module, traces in program.router_sources.items() if module in routers}
    return program.model_copy(
        update={"state": state, "demo_sources": sources, "routers": routers, "router_sources": learnt}
    )


def _replace_in_service(
    artifacts: VersionStore, versions: list[str], target: ErasureTarget, actor: str
) -> tuple[str | None, str | None]:
    """Take versions out of service. Returns what was active before and is now, or None where nothing was replaced."""
    last = artifacts.last_transition()
    serving = [version for version in versions if last and version in last.serving]
    if last is None or not serving:
        return None, None
    successor = last.to_version
    if last.to_version in versions:
        try:
            program = artifacts.load(last.to_version)
        except InvalidArtifact:
            return None, None  # a damaged version serves nobody, so nothing has to replace it
        successor = _store_cleaned(artifacts, last.to_version, without_target(program, target), versions, actor)
    reason = f"{', '.join(serving)} is withdrawn: {_WHY}"
    artifacts.transition(
        successor, expected=last.to_version, actor=FORGET, reason=reason, resets_alpha_budget=False, after=last
    )
    return last.to_version, successor


def _store_cleaned(artifacts: VersionStore, version: str, cleaned: Program, withdrawn: list[str], actor: str) -> str:
    """Store the cleaned program of a version, unless an equal one is there that stays. Returns its version."""
    manifests = artifacts.versions()
    for manifest in reversed(manifests):
        stays = manifest.version not in withdrawn and artifacts.withdrawal(manifest.version) is None
        if stays and manifest.program_sha256 == cleaned.digest:
            return manifest.version
    (parent,) = [manifest for manifest in manifests if manifest.version == version]
    manifest = parent.model_copy(
        update={
            **program_facts(cleaned, datetime.now(UTC)),
            "run_id": f"{FORGET} by {actor}",
            "parent": version,
            "verdict": FORGET,
            "reason": f"{version} without what held the text of a trace that is to be forgotten, by {actor}",
            "incumbent_score": None,
            "candidate_score": None,
            "gate": {},
            "judged_by": {},
            "unread": {},
            "costs": {},
            "lm_dollars": 0.0,
            **dict.fromkeys(("lm_calls", "lm_tokens", "lm_input_tokens", "lm_output_tokens", "lm_cached_tokens"), 0),
        }
    )
    artifacts.save(cleaned, manifest)
    return manifest.version


def _contains(raw: str, manifest: Manifest | None, target: ErasureTarget) -> bool:
    """Whether a stored program contains the target. What cannot be read as a program is searched as plain text."""
    sources = {"demo_sources": manifest.demo_sources, "router_sources": manifest.router_sources} if manifest else {}
    try:
        program = Program.model_validate_json(raw).model_copy(update=sources)
        cleaned = without_target(program, target)
        return cleaned.state != program.state or cleaned.routers != program.routers
    except (TypeError, ValueError, AttributeError, KeyError):
        return target.is_in_raw(raw)


@cache
def _baseline_instructions(module: str, labels: tuple[str, ...]) -> Mapping[str, str]:
    """By predictor; empty for a module that is not installed."""
    spec = modules().get(module)
    if spec is None:
        return {}
    program = spec.build_program(spec.labels or tuple(Label(name) for name in labels))
    return {name: predictor.signature.instructions for name, predictor in program.named_predictors()}
