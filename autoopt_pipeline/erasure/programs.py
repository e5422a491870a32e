"""Taking a trace's text out of everything that was learnt from it: which programs hold it, and what is left without.

Every step can be repeated, and finishes what an earlier call that died left undone.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from pydantic import ValidationError

from autoopt_pipeline.errors import ConfigConflict, InvalidArtifact, PromotionConflict
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.modules.redaction import Redact
from autoopt_pipeline.modules.similarity import normalize_query, quotes
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.registry.records import Program, program_facts
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import RoutingConfigUnified, chosen_fields, parse_config
from autoopt_pipeline.tenants.store import read_config, write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore

FORGET = "forget"
"""The actor of an erasure's transition, and the verdict of the version it leads to: privacy outranks the gate."""

_DEMO_LISTS = ("demos", "train", "traces")
"""Where DSPy's state of a predictor keeps examples."""

_TRIES = 5


class ForgottenText:
    """Queries that are to be forgotten, as they were asked and as they were learnt, whatever case and punctuation."""

    def __init__(self, queries: Iterable[str], redact: Redact) -> None:
        self.queries = frozenset(text for query in queries if query.strip() for text in (query, redact(query)))
        self._whole = frozenset(normalize_query(query) for query in self.queries)

    def is_in(self, value: Any) -> bool:
        """Whether one of the texts stands in a value, or in the values of a mapping or list taken together."""
        leaves = [normalize_query(leaf) for leaf in _leaves(value)]
        joined = " ".join(leaves)
        return not self._whole.isdisjoint(leaves) or any(quotes(joined, query) for query in self._whole)

    def occurs_in(self, raw: str) -> bool:
        """Whether one of the texts, however short, stands in what nobody can read as a program any more."""
        words = f" {normalize_query(raw)} "
        return any(f" {text} " in words for text in self._whole)


@dataclass(frozen=True)
class Cleaned:
    """What became of a module's programs: versions that are gone, and which was active before and which is now."""

    withdrawn: tuple[str, ...] = ()
    before: str | None = None
    now: str | None = None


def versions_with(artifacts: VersionStore, text: ForgottenText) -> list[str]:
    """The versions whose demos or instructions hold the text, damaged and half written ones included, oldest first."""
    return list(dict.fromkeys(version for version, raw in artifacts.iter_program_texts() if _holds(raw, text)))


def forget_in_programs(artifacts: VersionStore, text: ForgottenText, *, who: str) -> Cleaned:
    """Withdraw every version that holds the text; in place of the active one, its equal without the text serves.

    Raises `PromotionConflict` when others keep changing the active version, and whatever the artifact store raises.
    """
    reason = "it held the text of a trace that is to be forgotten"
    before = after = None
    for _ in range(_TRIES):
        holding = versions_with(artifacts, text)
        last = artifacts.last_transition()
        in_service = [version for version in holding if version in last.serving] if last else []
        if last is None or not in_service:
            break
        successor = last.to_version
        if last.to_version in holding:
            try:
                program = artifacts.load(last.to_version)
            except InvalidArtifact:
                break  # it serves nobody, so nothing has to take its place
            successor = _store_without(artifacts, last.to_version, program, text, who)
        try:
            artifacts.transition(
                successor,
                expected=last.to_version,
                actor=FORGET,
                reason=f"{', '.join(in_service)} is withdrawn: {reason}",
                resets_alpha_budget=False,
                after=last,
            )
        except PromotionConflict:
            continue
        before, after = last.to_version, successor
        break
    else:
        raise PromotionConflict(
            f"{artifacts.tenant_id}/{artifacts.module}: the active version keeps changing", "repeat the command"
        )
    for version in holding:
        artifacts.withdraw(version, actor=who, reason=reason)
    if holding:
        artifacts.record_action("erased", actor=who, text=f"{', '.join(holding)}: {reason}")
    return Cleaned(tuple(holding), before, after)


def without_text(program: Program, text: ForgottenText) -> Program:
    """The program without the demos that hold the text; where instructions do, with the baseline's instead."""
    state = {}
    for name, predictor in program.state.items():
        kept = {key: [demo for demo in predictor.get(key, ()) if not text.is_in(demo)] for key in _DEMO_LISTS}
        state[name] = {**predictor, **{key: demos for key, demos in kept.items() if key in predictor}}
        if _instructions_hold(program, name, text):
            instructions = _baseline_instructions(program.module, tuple(program.labels)).get(name, "")
            state[name]["signature"] = {**predictor["signature"], "instructions": instructions}
    return program.model_copy(update={"state": state})


def never_learn_again(
    configs: TenantConfigStore,
    tenant_id: str,
    trace_ids: Collection[str],
    retrain: Collection[str],
    *,
    now: datetime,
    who: str = "",
) -> int | None:
    """Enter the traces and the modules that are to be retrained in the tenant's configuration, as `who` wants it.

    Returns the version written, or None where it said so already. Modules that the tenant does not have stay out.
    Raises `InvalidConfig` when the list is full, and `ConfigConflict` when others keep changing the configuration.
    """
    for _ in range(_TRIES):
        config, version = read_config(configs, tenant_id)
        changed = _with_forgotten(config, trace_ids, retrain, now)
        if changed == config:
            return None
        try:
            return write_config(configs, changed, actor=who, expected_version=version)
        except ConfigConflict:
            continue
    raise ConfigConflict(f"tenant {tenant_id}: the configuration keeps changing", "repeat the command")


def _with_forgotten(
    config: RoutingConfigUnified, trace_ids: Collection[str], retrain: Collection[str], now: datetime
) -> RoutingConfigUnified:
    known = [module for module in retrain if module in config.modules]
    data = chosen_fields(config, *(["modules"] if known else []))
    data["excluded_traces"] = list(dict.fromkeys([*config.excluded_traces, *trace_ids]))
    for module in known:
        data["modules"][module]["retrain_after"] = now
    return parse_config(data, where=f"tenant {config.tenant_id}")


def _store_without(artifacts: VersionStore, version: str, program: Program, text: ForgottenText, who: str) -> str:
    """Store an active program without the text, unless that was done before, and return the version."""
    clean = without_text(program, text)
    manifests = artifacts.versions()
    for manifest in reversed(manifests):
        if manifest.program_sha256 == clean.digest and artifacts.withdrawal(manifest.version) is None:
            return manifest.version
    now = datetime.now(UTC)
    (parent,) = [manifest for manifest in manifests if manifest.version == version]
    manifest = parent.model_copy(
        update={
            **program_facts(clean, now),
            "run_id": f"{FORGET} by {who}",
            "parent": version,
            "verdict": FORGET,
            "reason": f"{version} without what held the text of a trace that is to be forgotten, by {who}",
            "incumbent_score": None,
            "candidate_score": None,
            "gate": {},
            "lm_calls": 0,
            "lm_tokens": 0,
        }
    )
    artifacts.save(clean, manifest)
    return manifest.version


def _holds(raw: str, text: ForgottenText) -> bool:
    try:
        program = Program.model_validate_json(raw)
        predictors = {name: dict(predictor) for name, predictor in program.state.items()}
        if any(_instructions_hold(program, name, text) for name in predictors):
            return True
        shown = (predictor.get(key, ()) for predictor in predictors.values() for key in _DEMO_LISTS)
        return any(text.is_in(demo) for each in shown for demo in each)
    except (ValidationError, TypeError, ValueError, AttributeError):  # not a state that DSPy wrote
        return text.occurs_in(raw)


def _instructions_hold(program: Program, name: str, text: ForgottenText) -> bool:
    """Whether a predictor's instructions hold the text. The baseline's come from no trace, whatever they say."""
    instructions = program.state[name].get("signature", {}).get("instructions", "")
    return text.is_in(instructions) and instructions != _baseline_instructions(
        program.module, tuple(program.labels)
    ).get(name)


@cache
def _baseline_instructions(module: str, labels: tuple[str, ...]) -> Mapping[str, str]:
    """By predictor; empty for a module that is not installed."""
    spec = modules().get(module)
    if spec is None:
        return {}
    program = spec.build_program(spec.labels or tuple(Label(name) for name in labels))
    return {name: predictor.signature.instructions for name, predictor in program.named_predictors()}


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = value.values()
    elif isinstance(value, str) or not isinstance(value, Iterable):
        yield str(value)
        return
    for each in value:
        yield from _leaves(each)
