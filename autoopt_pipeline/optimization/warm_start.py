"""Starting from what other tenants learnt: instructions only, never demos, and only where both sides said so.

A tenant that shares publishes the instructions of its last promotion, unless they give away what it was asked or who
it is. A tenant that may start from them does so while it has too little data to prove anything itself.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version

import dspy

from autoopt_pipeline.errors import AutooptError, InvalidArtifact, InvalidConfig, PromotionConflict
from autoopt_pipeline.modules.similarity import normalize_query, split_words
from autoopt_pipeline.modules.spec import Label, ModuleSpec
from autoopt_pipeline.optimization.optimizers import SEED
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.promotion_blocks import why_unwanted
from autoopt_pipeline.registry.records import Manifest, Program
from autoopt_pipeline.registry.serialization import fingerprint, serialize
from autoopt_pipeline.registry.shared_instructions import SHARED_PRIOR, SharedInstructions, SharedStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.stores.base import StoredConfig, TenantConfigStore

QUOTE_WORDS = 5
"""So many words in a row that a query has too are a quotation of it."""

MIN_QUERY_WORDS = 3
"""A shorter query is quoted where all of it stands, if it has at least so many words."""

MAX_INSTRUCTIONS_CHARS = 8000
"""Longest instructions that are taken from others: every call of the taker pays for them."""


class Pool:
    """One module's shared instructions, and who consents to it at the moment."""

    def __init__(self, store: SharedStore, configs: TenantConfigStore) -> None:
        self.store = store
        self._configs = configs

    def donors(self, taker: str) -> Iterator[SharedInstructions]:
        """What the other tenants share whose configuration, as it is now, says so; by tenant."""
        if not self.store.any_published():
            return  # mostly so, and then nobody's configuration is read
        sharing = [tenant for tenant, entry in self._configs.current().items() if _shares(entry)]
        for tenant_id in self.store.publishers(tenant for tenant in sharing if tenant != taker):
            try:
                shared = self.store.read(tenant_id)
            except InvalidArtifact:
                continue
            if shared:
                yield shared


@dataclass(frozen=True)
class Started:
    """The version that a tenant starts from, whether it is active, and that in words."""

    version: str
    active: bool
    reason: str


def shareable(
    spec: ModuleSpec,
    labels: Sequence[Label],
    program: dspy.Module,
    made_from: Iterable[dspy.Module],
    parent: Manifest | None,
    tenant_id: str,
    seen: Iterable[str],
) -> list[str]:
    """The predictors whose instructions may leave the tenant, to be decided when a candidate is made.

    `seen` is every text of the window that it was made from; later windows have others. Instructions that began as
    those of `made_from` may quote what they had seen, so then they had to be shareable in the `parent` already.
    """
    baseline = _instructions(spec.build_program(labels))
    seen = tuple(seen)
    inherited = {
        name for each in made_from for name, text in _instructions(each).items() if text != baseline.get(name)
    }.difference(parent.shareable if parent else ())
    return [
        name
        for name, text in _instructions(program).items()
        if text != baseline.get(name) and name not in inherited and not gives_away(text, tenant_id, seen)
    ]


def share_instructions(
    pool: Pool, spec: ModuleSpec, labels: Sequence[Label], report: Report, manifest: Manifest, program: dspy.Module
) -> list[str]:
    """Publish the shareable instructions of a version that was just promoted, in place of the tenant's last ones.

    `report` holds the comparison that promoted it. Returns notes for people: what is shared, and what is not for it
    may give too much away. Never fails, for the promotion stands.
    """
    try:
        baseline = _instructions(spec.build_program(labels))
        learnt = {name: text for name, text in _instructions(program).items() if text != baseline.get(name)}
        fit = {name: text for name, text in learnt.items() if name in manifest.shareable}
        notes = [
            f"the instructions of {name} are not shared: they, or what they were made from, may quote a query"
            for name in learnt
            if name not in fit
        ]
        if not (fit and report.gate):
            pool.store.withdraw(report.tenant_id)
            return notes
        comparison = report.gate.comparison
        pool.store.publish(
            SharedInstructions(
                tenant_id=report.tenant_id,
                module=spec.name,
                version=manifest.version,
                published_at=datetime.now(UTC),
                fingerprint=fingerprint(spec, labels, program),
                lm=report.lm,
                gain=comparison.gain,
                cases=comparison.cases,
                labels=[] if spec.labels else [label.name for label in labels],
                instructions=fit,
            )
        )
    except AutooptError as e:
        return [f"the instructions are not shared: {e}"]
    return [*notes, f"other tenants may start from the instructions of {', '.join(fit)}"]


def start_from_shared(
    pool: Pool,
    config: RoutingConfigUnified,
    spec: ModuleSpec,
    labels: Sequence[Label],
    artifacts: VersionStore,
    report: Report,
    run_id: str,
) -> Started | None:
    """Begin with the best instructions that others share, for a tenant that nothing has been proven for yet.

    None where there are none, or somebody went back from the same, or activated a version meanwhile. With
    `promotion_mode` manual they wait for approval. `report` says what the run has seen.
    """
    program = spec.build_program(labels)
    chosen = choose(
        pool.donors(config.tenant_id),
        fingerprint=fingerprint(spec, labels, program),
        predictors=_instructions(program),
        labels=[label.name for label in labels],
    )
    if not chosen:
        return None
    for name, predictor in program.named_predictors():
        if name in chosen:
            predictor.signature = predictor.signature.with_instructions(chosen[name].instructions[name])
    stored = serialize(spec, config.tenant_id, labels, program)
    if why_unwanted(artifacts, stored.digest):
        return None
    donors = len({shared.tenant_id for shared in chosen.values()})
    whose = "1 tenant shares" if donors == 1 else f"{donors} tenants share"
    why = f"unproven here: started from the instructions that {whose}"
    version = _store(artifacts, stored, report, run_id, why)
    if config.promotion_mode == "manual":
        return Started(version, False, f"{version} waits for approval, {why}")
    try:
        artifacts.transition(version, expected=None, actor=f"run {run_id}", reason=why, resets_alpha_budget=False)
    except PromotionConflict:
        return None
    return Started(version, True, f"meanwhile {version} is active, {why}")


def choose(
    shared: Iterable[SharedInstructions],
    *,
    fingerprint: str,
    predictors: Collection[str],
    labels: Collection[str],
) -> dict[str, SharedInstructions]:
    """For each predictor, whose instructions have the best proven gain; equal gains go to more cases, then by id.

    They must be made for the same signature, be of a fit length, and name no agent that the taker does not have.
    """
    ranked = sorted(
        (each for each in shared if each.fingerprint == fingerprint),
        key=lambda each: (-each.gain, -each.cases, each.tenant_id),
    )
    chosen = {}
    for name in predictors:
        for each in ranked:
            if _is_fit(each.instructions.get(name, ""), set(each.labels).difference(labels)):
                chosen[name] = each
                break
    return chosen


def gives_away(instructions: str, tenant_id: str, seen: Iterable[str]) -> str | None:
    """Why instructions must not leave their tenant: they quote what it was asked, or name it. None where they may."""
    own = _words(instructions)
    if any(_holds(own, _words(part)) for part in tenant_id.split(":")):
        return "they name the tenant"
    runs = {length: _runs(own, length) for length in range(MIN_QUERY_WORDS, QUOTE_WORDS + 1)}
    for text in seen:
        words = _words(text)
        length = min(len(words), QUOTE_WORDS)
        if length >= MIN_QUERY_WORDS and not runs[length].isdisjoint(_runs(words, length)):
            return "they quote a query"
    return None


def _shares(entry: StoredConfig) -> bool:
    """Whether a tenant's configuration says that it shares; one that cannot be read says nothing."""
    # Parsing 10,000 configurations takes a second, and most say nothing of it.
    if not (isinstance(entry.document, Mapping) and entry.document.get("share_instructions")):
        return False
    try:
        return entry.parse().share_instructions
    except InvalidConfig:
        return False


def _is_fit(instructions: str, foreign: Iterable[str]) -> bool:
    words = normalize_query(instructions)
    return (
        bool(instructions.strip())
        and len(instructions) <= MAX_INSTRUCTIONS_CHARS
        and not any(f" {normalize_query(label)} " in f" {words} " for label in foreign)
    )


def _instructions(program: dspy.Module) -> Mapping[str, str]:
    return {name: predictor.signature.instructions for name, predictor in program.named_predictors()}


def _words(text: str) -> list[str]:
    # An agent's name may hold the tenant's.
    return split_words(normalize_query(text).replace("_", " "))


def _runs(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def _holds(words: Sequence[str], wanted: Sequence[str]) -> bool:
    return bool(wanted) and tuple(wanted) in _runs(words, len(wanted))


def _store(artifacts: VersionStore, program: Program, report: Report, run_id: str, why: str) -> str:
    """Store a program that nothing was measured of, unless an equal one is there, and return its version."""
    for manifest in artifacts.versions():
        if manifest.program_sha256 == program.digest and artifacts.withdrawal(manifest.version) is None:
            return manifest.version
    version = f"{report.window_end:%Y%m%dT%H%M%SZ}-{program.digest[:8]}"
    manifest = Manifest(
        version=version,
        program_sha256=program.digest,
        created_at=datetime.now(UTC),
        run_id=run_id,
        parent=None,
        verdict=report.verdict.value,
        reason=why,
        window_start=report.window_start,
        window_end=report.window_end,
        examples=report.examples,
        provenance=report.provenance,
        incumbent_score=None,
        candidate_score=None,
        gate={},
        optimizer=SHARED_PRIOR,
        seed=SEED,
        lm=report.lm,
        stand_in=report.stand_in,
        lm_calls=0,
        lm_tokens=0,
        packages={name: package_version(name) for name in ("autoopt-pipeline", "dspy")},
    )
    artifacts.save(program, manifest)
    return version
