"""One module of one tenant, from traces to a verdict. Reads top to bottom."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version as package_version

import dspy

from autoopt_pipeline.artifacts.programs import unpack
from autoopt_pipeline.artifacts.store import Manifest, ModuleArtifacts, Program
from autoopt_pipeline.errors import InvalidArtifact, StaleIncumbent
from autoopt_pipeline.lm.meter import BudgetExhausted
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.redaction import Redact
from autoopt_pipeline.modules.redaction import redact as default_redact
from autoopt_pipeline.modules.spec import Decision, Example, Label, ModuleSpec
from autoopt_pipeline.optimization.evaluation import answer_all
from autoopt_pipeline.optimization.gate import MIN_HOLDOUT, Case, GateDecision, Verdict, judge
from autoopt_pipeline.optimization.ledger import next_charge
from autoopt_pipeline.optimization.optimizers import SEED
from autoopt_pipeline.optimization.report import Report, changes_between, confusion, sizes
from autoopt_pipeline.optimization.search import (
    MIN_DEV,
    Finalist,
    budget_too_small,
    check_budget,
    choosing_examples,
    search,
)
from autoopt_pipeline.optimization.split import Split, normalize_query, split_examples
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of

MIN_TRAIN = 20
"""Fewest training examples that are worth a search."""

MAX_TRAIN, MAX_DEV, MAX_HOLDOUT = 2000, 100, 300
"""Most examples that are used, the newest. More judge hardly better and cost two calls each."""


_LEDGER_TRIES = 20


@dataclass(frozen=True)
class Job:
    """What to optimize, from which traces, and for which run. The window is UTC, its end not included.

    `redact` takes personal data out of every input before it is learnt, stored or shown.
    """

    spec: ModuleSpec
    config: RoutingConfigUnified
    decisions: Sequence[Decision]
    window_start: datetime
    window_end: datetime
    run_id: str
    redact: Redact = default_redact


def optimize(
    job: Job, lm: MeteredLM, artifacts: ModuleArtifacts, *, say: Callable[[str], None] = lambda line: None
) -> Report:
    """Search for a better program and promote it when it is proven better. Nothing is changed otherwise.

    Raises `LMUnavailable` when the model fails, and whatever the artifact store raises.
    """
    started = time.monotonic()
    spec, config = job.spec, job.config
    labels = labels_of(spec, config)
    found = spec.build_examples(labels, job.decisions, job.redact)
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
        examples=sizes(split) | {"redacted": found.redacted},
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

    check_budget(config, split)

    incumbent, notes = _incumbent(spec, labels, artifacts, incumbent_version)
    found_by_search = search(spec, config, labels, split, incumbent, lm, say)
    finalist = found_by_search.finalist
    draft = replace(
        draft,
        tried=found_by_search.tried,
        incumbent_dev_score=found_by_search.incumbent_dev_score,
        notes=(*notes, *found_by_search.notes),
    )
    if finalist is None:
        return report(
            Verdict.REJECTED,
            f"no candidate beat the incumbent on the {len(choosing_examples(split))} dev examples "
            f"({100 * found_by_search.incumbent_dev_score:.1f} %), so the holdout was not touched",
        )
    draft = replace(
        draft,
        optimizer=finalist.optimizer,
        changes=changes_between(incumbent, finalist.program),
    )
    _check_no_leak(finalist.program, split)

    alpha = _charge(artifacts, finalist.stored, split, incumbent_version, job.window_end)
    judged = [*split.holdout, *split.guard]
    say(f"finalist {finalist.optimizer}: {len(judged)} holdout traces, alpha {alpha:.2g}")
    try:
        before = answer_all(spec, incumbent, judged, lm)
        after = answer_all(spec, finalist.program, judged, lm)
    except BudgetExhausted as e:
        raise budget_too_small(config, str(e)) from None
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
        confusion=confusion(split.holdout, after[:size]),
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
        f"{len(split.holdout)} of {in_holdout} holdout examples have a human or judge label of a trace drawn at "
        f"random, and {MIN_HOLDOUT} are needed; the application's own answers cannot prove a gain",
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


def _manifest(
    draft: Report,
    job: Job,
    version: str,
    finalist: Finalist,
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


def _digest(examples: Sequence[Example]) -> str:
    rows = [[normalize_query(example.query), example.label] for example in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
