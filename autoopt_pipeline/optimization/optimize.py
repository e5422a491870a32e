"""One module of one tenant, from traces to a verdict. Reads top to bottom."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version as package_version

import dspy

from autoopt_pipeline.artifacts.programs import pack, unpack
from autoopt_pipeline.artifacts.store import Manifest, ModuleArtifacts, Program
from autoopt_pipeline.errors import InvalidArtifact, InvalidConfig, StaleIncumbent
from autoopt_pipeline.lm.meter import BudgetExhausted
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.spec import Decision, Example, Label, ModuleSpec, Provenance
from autoopt_pipeline.optimization.evaluation import Answer, answer_all, raising_outages, share_right
from autoopt_pipeline.optimization.gate import MIN_HOLDOUT, Case, GateDecision, Verdict, judge
from autoopt_pipeline.optimization.ledger import next_charge
from autoopt_pipeline.optimization.optimizers import SEED, Workshop, optimizers_for
from autoopt_pipeline.optimization.split import Split, normalize_query, split_examples
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of

MIN_TRAIN, MIN_DEV = 20, 10
"""Fewest examples that are worth a search."""

MAX_TRAIN, MAX_DEV, MAX_HOLDOUT = 2000, 100, 300
"""Most examples that are used, the newest. More judge hardly better and cost two calls each."""


_LEDGER_TRIES = 20


@dataclass(frozen=True)
class Job:
    """What to optimize, from which traces, and for which run. The window is UTC, its end not included."""

    spec: ModuleSpec
    config: RoutingConfigUnified
    decisions: Sequence[Decision]
    window_start: datetime
    window_end: datetime
    run_id: str


@dataclass(frozen=True)
class Tried:
    """One optimizer's program: its score on the dev examples and what it cost."""

    optimizer: str
    dev_score: float
    lm_calls: int


@dataclass(frozen=True)
class Report:
    """Everything a person wants to know of one optimization."""

    tenant_id: str
    module: str
    verdict: Verdict
    reason: str
    window_start: datetime
    window_end: datetime
    decisions: int
    examples: dict[str, int]
    provenance: dict[str, int]
    unusable: dict[str, int]
    incumbent_version: str | None
    version: str | None
    active_version: str | None
    lm: str
    stand_in: bool
    lm_calls: int = 0
    lm_tokens: int = 0
    seconds: float = 0.0
    tried: tuple[Tried, ...] = ()
    incumbent_dev_score: float | None = None
    optimizer: str | None = None
    gate: GateDecision | None = None
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    fixed: tuple[Example, ...] = ()
    broken: tuple[Example, ...] = ()
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Finalist:
    optimizer: str
    program: dspy.Module
    stored: Program


def optimize(
    job: Job, lm: MeteredLM, artifacts: ModuleArtifacts, *, say: Callable[[str], None] = lambda line: None
) -> Report:
    """Search for a better program and promote it when it is proven better. Nothing is changed otherwise.

    Raises `LMUnavailable` when the model fails, and whatever the artifact store raises.
    """
    started = time.monotonic()
    spec, config = job.spec, job.config
    labels = labels_of(spec, config)
    found = spec.build_examples(labels, job.decisions)
    split = split_examples(found.examples, max_holdout=MAX_HOLDOUT, max_dev=MAX_DEV, max_train=MAX_TRAIN)
    active = artifacts.active()
    incumbent_version = active.version if active else None
    draft = Report(
        tenant_id=config.tenant_id,
        module=spec.name,
        verdict=Verdict.NOT_ENOUGH_DATA,
        reason="",
        window_start=job.window_start,
        window_end=job.window_end,
        decisions=len(job.decisions),
        examples=_sizes(split),
        provenance=dict(Counter(example.provenance.value for example in found.examples)),
        unusable=found.unusable,
        incumbent_version=incumbent_version,
        version=None,
        active_version=incumbent_version,
        lm=lm.name,
        stand_in=lm.is_stand_in,
    )

    def report(verdict: Verdict, reason: str, **more: object) -> Report:
        say(f"{verdict.value}: {reason}")
        return replace(
            draft,
            verdict=verdict,
            reason=reason,
            lm_calls=lm.meter.calls,
            lm_tokens=lm.meter.tokens,
            seconds=round(time.monotonic() - started, 2),
            **more,
        )

    say(f"{len(job.decisions)} decisions -> {len(found.examples)} examples: {_listed(draft.examples)}")
    if lacking := _lacking(split):
        return report(*lacking)

    _check_budget(config, split)

    incumbent, notes = _incumbent(spec, labels, artifacts, incumbent_version)
    finalist, tried, incumbent_dev, search_notes = _search(job, labels, split, incumbent, lm, say)
    draft = replace(
        draft,
        tried=tuple(tried),
        incumbent_dev_score=incumbent_dev,
        notes=(*notes, *search_notes),
    )
    if finalist is None:
        return report(
            Verdict.REJECTED,
            f"no candidate beat the incumbent on the {len(_choosing(split))} dev examples "
            f"({100 * incumbent_dev:.1f} %), so the holdout was not touched",
        )
    draft = replace(
        draft,
        optimizer=finalist.optimizer,
        changes=_changes(incumbent, finalist.program),
    )
    _check_no_leak(finalist.program, split)

    alpha = _charge(artifacts, finalist.stored, split, incumbent_version, job.window_end)
    judged = [*split.holdout, *split.guard]
    say(f"finalist {finalist.optimizer}: {len(judged)} holdout traces, alpha {alpha:.2g}")
    try:
        before = answer_all(spec, incumbent, judged, lm)
        after = answer_all(spec, finalist.program, judged, lm)
    except BudgetExhausted as e:
        raise _budget_too_small(config, str(e)) from None
    cases = [Case(example.label, old.label, new.label) for example, old, new in zip(judged, before, after, strict=True)]
    size = len(split.holdout)
    decision = judge(cases[:size], cases[size:], alpha=alpha)
    verdict, reason = decision.verdict, decision.reason
    if verdict is Verdict.PROMOTED and config.promotion_mode == "manual":
        verdict, reason = Verdict.AWAITING_APPROVAL, f"promotion_mode is manual; {reason}"

    version = f"{job.window_end:%Y%m%dT%H%M%SZ}-{finalist.stored.digest[:8]}"
    artifacts.save(
        finalist.stored,
        _manifest(draft, job, version, finalist, decision, verdict, reason, lm),
    )
    active_version = incumbent_version
    if verdict is Verdict.PROMOTED:
        try:
            artifacts.move(version, expected=incumbent_version, by=f"run {job.run_id}", why=reason)
            active_version = version
        except StaleIncumbent as e:
            verdict, reason = Verdict.STALE, str(e)
    return report(
        verdict,
        reason,
        version=version,
        active_version=active_version,
        gate=decision,
        confusion=_confusion(split.holdout, after[:size]),
        fixed=tuple(e for e, case in zip(split.holdout, cases, strict=False) if case.fixed),
        broken=tuple(e for e, case in zip(split.holdout, cases, strict=False) if case.broken),
    )


def _lacking(split: Split) -> tuple[Verdict, str] | None:
    """The verdict when the data cannot decide, with what is missing."""
    if len(split.train) < MIN_TRAIN or len(split.dev) < MIN_DEV:
        return (
            Verdict.NOT_ENOUGH_DATA,
            f"{len(split.train)} of {MIN_TRAIN} training and {len(split.dev)} of {MIN_DEV} dev examples",
        )
    in_holdout = len(split.holdout) + len(split.guard)
    if len(split.holdout) >= MIN_HOLDOUT:
        return None
    if in_holdout < MIN_HOLDOUT:
        return Verdict.NOT_ENOUGH_DATA, f"{in_holdout} of {MIN_HOLDOUT} holdout examples"
    return (
        Verdict.NO_INDEPENDENT_LABELS,
        f"{len(split.holdout)} of {MIN_HOLDOUT} holdout examples have a human or judge label of a trace drawn "
        f"at random; the other {len(split.guard)} are the application's own answers and cannot prove a gain",
    )


def _check_budget(config: RoutingConfigUnified, split: Split) -> None:
    """A budget that cannot even pay the comparison would end every run the same way, so it is an error."""
    least = _comparison_calls(split) + len(_choosing(split))
    if config.budget.max_lm_calls < least:
        raise _budget_too_small(
            config, f"budget.max_lm_calls is {config.budget.max_lm_calls}, and {least} calls are the least"
        )


def _incumbent(
    spec: ModuleSpec, labels: Sequence[Label], artifacts: ModuleArtifacts, version: str | None
) -> tuple[dspy.Module, tuple[str, ...]]:
    """The program that serves now, which is the baseline where no version can."""
    if version is None:
        return spec.build_program(labels), ()
    try:
        return unpack(spec, labels, artifacts.load(version)), ()
    except InvalidArtifact as e:
        return spec.build_program(labels), (f"the active version cannot serve, so the baseline is compared: {e}",)


def _search(
    job: Job,
    labels: Sequence[Label],
    split: Split,
    incumbent: dspy.Module,
    lm: MeteredLM,
    say: Callable[[str], None],
) -> tuple[_Finalist | None, list[Tried], float, list[str]]:
    """Try optimizers within the budget; the best on dev is the finalist, if it beats the incumbent there."""
    spec, config = job.spec, job.config
    dev = _choosing(split)
    shop = Workshop(
        spec=spec,
        baseline=spec.build_program(labels),
        train=split.train,
        dev=dev,
        lm=lm,
        max_labeled_demos=config.dspy_max_labeled_demos,
        max_bootstrapped_demos=config.dspy_max_bootstrapped_demos,
    )
    tried: list[Tried] = []
    notes: list[str] = []
    best: _Finalist | None = None
    incumbent_dev: float | None = None
    try:
        # What the search must leave over for the comparison on the holdout.
        with lm.meter.holding_back(_comparison_calls(split)):
            incumbent_dev = best_dev = share_right(dev, answer_all(spec, incumbent, dev, lm))
            for optimizer in optimizers_for(shop):
                calls_before = lm.meter.calls
                with raising_outages(lm):
                    program = optimizer.compile()
                score = share_right(dev, answer_all(spec, program, dev, lm))
                tried.append(Tried(optimizer.name, score, lm.meter.calls - calls_before))
                say(f"{optimizer.name}: {100 * score:.1f} % on dev, {tried[-1].lm_calls} LM calls")
                if score > best_dev:
                    best_dev = score
                    best = _Finalist(optimizer.name, program, pack(spec, config.tenant_id, labels, program))
    except BudgetExhausted as e:
        if incumbent_dev is None:
            raise _budget_too_small(config, str(e)) from None
        notes.append(f"the budget ended the search: {e}; the best program so far was kept")
        say(notes[-1])
    return best, tried, incumbent_dev, notes


def _choosing(split: Split) -> list[Example]:
    """The dev examples that choose among programs: the reviewed ones, where they are enough.

    The others carry the application's own answers, with which its present program agrees, right or wrong.
    """
    reviewed = [example for example in split.dev if example.provenance is not Provenance.OUTCOME]
    return reviewed if len(reviewed) >= MIN_DEV else list(split.dev)


def _comparison_calls(split: Split) -> int:
    """Calls that comparing two programs on the holdout takes, and a few for what DSPy asks again when it is slow."""
    return 2 * (len(split.holdout) + len(split.guard)) + 10


def _budget_too_small(config: RoutingConfigUnified, what: str) -> InvalidConfig:
    return InvalidConfig(
        f"tenant {config.tenant_id}: the budget does not pay for a comparison: {what}",
        "raise budget.max_lm_calls and budget.max_tokens",
    )


def _charge(artifacts: ModuleArtifacts, candidate: Program, split: Split, incumbent: str | None, at: datetime) -> float:
    """Enter this look at the holdout in the ledger, before it is taken, and return its alpha."""
    holdout_digest = _digest([*split.holdout, *split.guard])
    for _ in range(_LEDGER_TRIES):
        entries = artifacts.ledger()
        charge = next_charge(
            entries,
            at=at,
            candidate_digest=candidate.digest,
            holdout_digest=holdout_digest,
            incumbent=incumbent,
        )
        if charge in entries or artifacts.charge(charge):
            return charge.alpha
    raise StaleIncumbent(
        f"{artifacts.tenant_id}/{artifacts.module}: other runs keep taking the next place in the ledger",
        "let them finish first",
    )


def _check_no_leak(program: dspy.Module, split: Split) -> None:
    """Held-out text must not occur in what a program shows the model."""
    held_out = {normalize_query(example.query) for example in [*split.holdout, *split.guard]}
    for predictor in program.predictors():
        shown = [normalize_query(str(demo.get("query", ""))) for demo in predictor.demos]
        instructions = normalize_query(predictor.signature.instructions)
        leaked = held_out.intersection(shown) or {
            query for query in held_out if len(query.split()) >= 5 and f" {query} " in f" {instructions} "
        }
        if leaked:
            raise InvalidArtifact(
                f"a candidate shows {len(leaked)} held-out queries to the model",
                "report this: it must not happen",
            )


def _changes(incumbent: dspy.Module, candidate: dspy.Module) -> tuple[str, ...]:
    """What the candidate shows the model that the incumbent does not, predictor by predictor."""
    before = dict(incumbent.named_predictors())
    changes = []
    for name, predictor in candidate.named_predictors():
        had = {normalize_query(str(demo.get("query", ""))) for demo in before[name].demos}
        has = {normalize_query(str(demo.get("query", ""))) for demo in predictor.demos}
        changes.append(f"{name}: {len(has)} demos, {len(has - had)} of them new, {len(had - has)} dropped")
        old, new = before[name].signature.instructions, predictor.signature.instructions
        if old != new:
            changes.append(f"{name}: instructions were {old!r} and are {new!r}")
    return tuple(changes)


def _manifest(
    draft: Report,
    job: Job,
    version: str,
    finalist: _Finalist,
    decision: GateDecision,
    verdict: Verdict,
    reason: str,
    lm: MeteredLM,
) -> Manifest:
    comparison = decision.comparison
    return Manifest(
        version=version,
        program_sha256=finalist.stored.digest,
        created_at=datetime.now(UTC),
        run_id=job.run_id,
        parent=draft.incumbent_version,
        verdict=verdict.value,
        reason=reason,
        window_start=job.window_start,
        window_end=job.window_end,
        examples=draft.examples,
        provenance=draft.provenance,
        incumbent_score=comparison.incumbent_score,
        candidate_score=comparison.candidate_score,
        gate={
            "alpha": decision.alpha,
            "p_value": comparison.p_value,
            "cases": comparison.cases,
            "fixed": comparison.fixed,
            "broken": comparison.broken,
        },
        optimizer=finalist.optimizer,
        seed=SEED,
        lm=lm.name,
        stand_in=lm.is_stand_in,
        lm_calls=lm.meter.calls,
        lm_tokens=lm.meter.tokens,
        packages={name: package_version(name) for name in ("autoopt-pipeline", "dspy")},
    )


def _confusion(examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, dict[str, int]]:
    """Counts by right label, then by the candidate's answer."""
    table: dict[str, Counter[str]] = {}
    for example, answer in zip(examples, answers, strict=True):
        table.setdefault(example.label, Counter())[answer.label or "(no valid answer)"] += 1
    return {label: dict(sorted(row.items())) for label, row in sorted(table.items())}


def _sizes(split: Split) -> dict[str, int]:
    return {
        "train": len(split.train),
        "dev": len(split.dev),
        "holdout": len(split.holdout),
        "guard": len(split.guard),
        "duplicates": split.duplicates,
        "near_duplicates": split.near_duplicates,
        "dropped": split.dropped_to_protect_holdout,
    }


def _digest(examples: Sequence[Example]) -> str:
    rows = [[normalize_query(example.query), example.label] for example in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
