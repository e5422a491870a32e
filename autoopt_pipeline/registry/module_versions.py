"""A snapshot of one tenant's module: its versions, transitions and active rollout, with descriptions for people."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.modules.catalog import get_module, module_names
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.program_cost import dollars_text
from autoopt_pipeline.registry.records import PASSED, Declined, Manifest, Program, Transition, Verdict, Withdrawal
from autoopt_pipeline.registry.rollout_records import RolloutResult
from autoopt_pipeline.registry.transitions import Rollout, active_rollout, rollback_stack, rolled_back
from autoopt_pipeline.registry.version_store import VersionStore, modules_of
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.text import did_you_mean


@dataclass(frozen=True)
class VersionEvent:
    """The last event of a version: what happened in a word or two, when (UTC), who did it, and why."""

    what: str
    at: datetime
    actor: str
    reason: str


@dataclass(frozen=True)
class ModuleVersions:
    """A snapshot of one tenant's module.

    `damaged` holds versions whose manifests cannot be read, and versions that should serve but are missing.
    """

    artifacts: VersionStore
    manifests: Sequence[Manifest]
    damaged: dict[str, InvalidArtifact]
    transitions: Sequence[Transition]

    @property
    def name(self) -> str:
        return f"{self.artifacts.tenant_id}/{self.artifacts.module}"

    @property
    def exist(self) -> bool:
        """Whether the module has any version or transition."""
        return bool(self.manifests or self.damaged or self.transitions)

    @property
    def active(self) -> str | None:
        """The active version, or None if the baseline serves."""
        return self.transitions[-1].to_version if self.transitions else None

    @cached_property
    def rollout(self) -> Rollout | None:
        """The active rollout."""
        return active_rollout(self.transitions[-1] if self.transitions else None)

    @cached_property
    def rolled_back(self) -> dict[str, Transition]:
        return rolled_back(self.transitions)

    @cached_property
    def _sequential_verdicts(self) -> dict[str, str]:
        return {step.version: step.verdict for step in self.artifacts.sequential_test_steps()}

    def verdict(self, manifest: Manifest) -> str:
        """Return the final verdict on a version: a person's, else its sequential test's, else its manifest's.

        It is `canary` for a version that was only a canary, and `stale` for one whose promotion came too late.
        """
        verdict = self._sequential_verdicts.get(manifest.version, manifest.verdict)
        if verdict in PASSED:
            return decided_about(self.artifacts, manifest.version, self.transitions) or verdict
        # The verdict is written before the transition, which another run may have made impossible.
        if verdict != Verdict.PROMOTED or self.was_active(manifest.version):
            return verdict
        was_canary = any(manifest.version in (transition.canary or ()) for transition in self.transitions)
        return Verdict.CANARY if was_canary else Verdict.STALE

    def was_active(self, version: str) -> bool:
        return any(transition.to_version == version for transition in self.transitions)

    def last_event(self, version: str) -> VersionEvent | None:
        """Return the last event of a version: it was made, became active, got a fraction of the requests, was
        replaced, rolled back, declined or withdrawn. None if unknown, as for a damaged one that never served."""
        if withdrawn := self.withdrawal(version):
            return VersionEvent("withdrawn", withdrawn.at, withdrawn.actor, withdrawn.reason)
        if transition := self._last_transitions.get(version):
            role = (
                "rolled back"
                if self.rolled_back.get(version) is transition
                else _roles(transition).get(version, "replaced")
            )
            return VersionEvent(role, transition.at, transition.actor, transition.reason)
        if declined := self.declined(version):
            return VersionEvent("declined", declined.at, declined.actor, declined.reason)
        made = next((manifest for manifest in self.manifests if manifest.version == version), None)
        return VersionEvent("made", made.created_at, f"run {made.run_id}", made.reason) if made else None

    @cached_property
    def _last_transitions(self) -> dict[str, Transition]:
        """The transition by which each version last began or ceased to serve, or got another fraction of requests."""
        last: dict[str, Transition] = {}
        before: dict[str, str] = {}
        for transition in self.transitions:
            roles = _roles(transition)
            last |= {name: transition for name in before.keys() | roles.keys() if before.get(name) != roles.get(name)}
            before = roles
        return last | self.rolled_back

    def previous(self) -> str | None:
        """Return the version that a rollback restores, or None for the baseline. During a canary it is the active one.

        It skips withdrawn versions. Raises `InvalidArtifact` if the baseline is active, because nothing precedes it.
        """
        if self.rollout and self.rollout.is_canary:
            return self.active
        for version in reversed(rollback_stack(self.transitions)[:-1]):
            if version is None or self.withdrawal(version) is None:
                return version
        raise InvalidArtifact(
            f"{self.name}: the baseline is active, so there is nothing to go back to",
            f"name a version; 'autoopt versions {self.artifacts.tenant_id} {self.artifacts.module}' lists them",
        )

    def withdrawal(self, version: str) -> Withdrawal | None:
        return self.artifacts.withdrawal(version)

    def declined(self, version: str) -> Declined | None:
        return self.artifacts.declined(version)

    def manifest(self, version: str) -> Manifest:
        """Return a version's manifest. Raises `InvalidArtifact` if it is damaged or unknown, with a similar name."""
        for manifest in self.manifests:
            if manifest.version == version:
                return manifest
        if version in self.damaged:
            raise self.damaged[version]
        hint = did_you_mean(version, [manifest.version for manifest in self.manifests])
        command = f"autoopt versions {self.artifacts.tenant_id} {self.artifacts.module}"
        raise InvalidArtifact(f"{self.name}: version {version[:60]!r} does not exist", f"{hint}'{command}' lists them")

    def named(self, text: str) -> str | None:
        """Return the version that a person names, None for the baseline. Raises as `manifest` does."""
        return None if text == BASELINE else self.manifest(text).version


def decided_about(artifacts: VersionStore, version: str, transitions: Sequence[Transition]) -> str | None:
    """Return a person's decision on a version that passed the gate: `approved`, `declined` or None."""
    if any(version in transition.serving for transition in transitions):
        return "approved"
    return "declined" if artifacts.declined(version) else None


def read_programs(files: ObjectStore, tenant: str, module: str) -> ModuleVersions:
    """Return the snapshot of a tenant's module, even if the module is not installed.

    Raises `InvalidTenantId`, or `UnknownModule` if the module is neither installed nor stored.
    """
    validate_tenant_id(tenant)
    # The programs of a module that is no longer installed can still be inspected.
    if module not in module_names() and all(stored.module != module for stored in modules_of(files, tenant)):
        get_module(module)
    artifacts = VersionStore(files, tenant, module)
    manifests, damaged = artifacts.list_versions()
    transitions = artifacts.transitions()
    listed = {manifest.version for manifest in manifests} | damaged.keys()
    for version in sorted(transitions[-1].serving - listed) if transitions else ():
        if artifacts.manifest(version) is None:  # otherwise it was stored after they were listed
            damaged[version] = InvalidArtifact(
                f"{artifacts.tenant_id}/{module}: version {version} should serve and is missing",
                "restore it from a backup, or activate another version",
            )
    return ModuleVersions(artifacts, manifests, damaged, transitions)


def predictors_of(stored: Program) -> dict[str, dict[str, Any]]:
    """Return instructions and demos by predictor, as they are stored, so the current signature is not needed."""
    return {
        name: {"instructions": predictor.signature.instructions, "demos": predictor.demos}
        for name, predictor in stored.predictors.items()
    }


def routers_of(stored: Program) -> dict[str, str]:
    """Return what each local router of a program does, by module."""
    return {
        module: describe_router(
            router.threshold,
            router.classes,
            stored.router_sources.get(module, ()),
            router.encoder.sha256 if router.encoder else None,
        )
        for module, router in stored.routers.items()
    }


def describe_router(threshold: float, labels: Sized, traces: Sized, encoder: str | None) -> str:
    """Return when a local router answers, how many labels it knows, from how many traces, and with which encoder."""
    when = f"answers from a confidence of {threshold:.2f}, else the model" if threshold else "answers all"
    vectors = f", with the sentence encoder {encoder[:12]}" if encoder else ""
    return f"{when}; {len(labels)} labels, learnt from {len(traces)} traces{vectors}"


def _roles(transition: Transition) -> dict[str, str]:
    """Return the role of each version while this is the last transition."""
    canary = {name: f"{100 * fraction:.4g} % of requests" for name, fraction in (transition.canary or {}).items()}
    return {name: canary.get(name, "active") for name in transition.serving}


def lm_of(manifest: Manifest) -> str:
    """Return the language model that a version was proven with, whether it is not a real one, and who gives it."""
    lm = f"{manifest.lm} (not a language model)" if manifest.stand_in else manifest.lm
    return f"{lm}; an application gives {', '.join(manifest.named_lms)} by name" if manifest.named_lms else lm


def cost_of(manifest: Manifest) -> str:
    """Return what the run that made a version spent on language models."""
    read = f"{manifest.lm_input_tokens:,} read ({manifest.lm_cached_tokens:,} of them cached)"
    tokens = f"{manifest.lm_tokens:,} tokens: {read}, {manifest.lm_output_tokens:,} written"
    return f"{manifest.lm_calls:,} LM calls, {tokens}; {dollars_text(manifest.lm_dollars)}"


def describe_transition(transition: Transition) -> str:
    """Describe a transition: from which version to which, and which other version serves since."""
    path = f"{transition.from_version or BASELINE} -> {transition.to_version or BASELINE}"
    if rollout := active_rollout(transition):
        other = rollout.version if rollout.is_canary else rollout.against
        path += f", with {100 * rollout.fraction:.4g} % of requests for {other or BASELINE}"
    return path


def describe_rollout(rollout: Rollout) -> str:
    """Describe which two versions a rollout compares."""
    newer, older = rollout.version or BASELINE, rollout.against or BASELINE
    fraction = f"{100 * rollout.fraction:.4g} % of requests"
    since = f"since {rollout.transition.at:%Y-%m-%d %H:%M} UTC"
    if rollout.proving_alpha:
        return f"canary {newer} has {fraction} {since}, and becomes active if it proves better than {older}"
    if rollout.is_canary:
        return f"canary {newer} has {fraction} {since}; {older} is active"
    return f"{newer} is active {since}; {older} keeps {fraction}"


def how_it_ended(result: RolloutResult) -> str:
    """Describe how a rollout ended, in one line."""
    names = f"{result.version or BASELINE} beside {result.against or BASELINE}"
    return f"{result.status.replace('_', ' ')}: {names}: {result.reason}"
