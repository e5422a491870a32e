"""Tests a candidate against the incumbent: charges the alpha ledger, draws traces, decides and concludes."""

from collections.abc import Sequence
from contextlib import suppress

import dspy

from autoopt_pipeline.errors import InvalidArtifact, PromotionConflict
from autoopt_pipeline.evaluation.alpha_ledger import next_charge
from autoopt_pipeline.evaluation.gate import MIN_HOLDOUT
from autoopt_pipeline.evaluation.sequential_test_log import OPEN, Draws, new_test
from autoopt_pipeline.evaluation.split import HoldoutExample
from autoopt_pipeline.modules.named_model import models_asked
from autoopt_pipeline.optimization.comparison import ask_the_same, compare_drawn, decide_by_reviews
from autoopt_pipeline.optimization.holdout import check_no_demo_is_held_out, digest_of, drawn_traces, without_quoted
from autoopt_pipeline.optimization.job import ModuleRun
from autoopt_pipeline.optimization.manifests import decision_in, manifest_of, measured
from autoopt_pipeline.optimization.preparation import CandidateUnderTest, Prepared, missing_data
from autoopt_pipeline.optimization.promotion import conclude, start_proof, verdict_of
from autoopt_pipeline.optimization.report import Report, changes_between
from autoopt_pipeline.optimization.report_draft import ReportDraft
from autoopt_pipeline.optimization.search import Finalist
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT
from autoopt_pipeline.registry.records import LedgerEntry, Program, Verdict, new_version_id

_LEDGER_TRIES = 20


def begin_test(run: ModuleRun, prepared: Prepared, draft: ReportDraft, finalist: Finalist) -> Report:
    """Charge a test of the finalist, and compare it with the incumbent on a first batch of drawn traces."""
    programs, active = (prepared.incumbent.program, finalist.program), prepared.incumbent.version
    _report_programs(run, draft, programs)
    draft.add(optimizer=finalist.optimizer)
    check_no_demo_is_held_out(finalist.program, prepared.split)
    split, notes = without_quoted(prepared.split, *programs)
    draft.notes += notes
    if missing := missing_data(split):
        return draft.end(*missing)
    draws: Draws = "reviewed" if len(split.holdout) >= MIN_HOLDOUT else "all"
    version = new_version_id(finalist.stored, run.job.window_end)
    drawn = drawn_traces(split, draws, seed=finalist.stored.digest, without=frozenset())
    guard = split.guard if draws == "reviewed" else ()
    charge, repeated = _charge(run, prepared, finalist.stored, [*drawn, *guard])
    manifest = run.artifacts.manifest(version) if repeated else None
    if manifest and manifest.gate.get("alpha") == charge.alpha and manifest.verdict not in OPEN:
        # The model may answer differently now, and to repeat a test until it succeeds would promote by luck.
        draft.notes.append(f"run {manifest.run_id} has judged this candidate on these traces, and its verdict stands")
        draft.add(gate=decision_in(manifest, run.artifacts))
        return conclude(run, draft, manifest, Verdict(manifest.verdict), manifest.reason, active=active)
    if any(step.version == version for step in run.artifacts.sequential_test_steps()):
        return draft.end(Verdict.REJECTED, f"the sequential test of {version} has already ended")
    test = new_test(version, prepared.conditions, after=prepared.steps_seen, alpha=charge.alpha, draws=draws)
    live = draws == "all" and run.config.evidence_for(run.spec.name) == "live"
    run.log(f"finalist {finalist.optimizer}: {len(drawn)} holdout traces, alpha {charge.alpha:.2g}")
    decided = compare_drawn(run, draft, test, drawn, programs, guard, learnt=split.learnt)
    gate, answered = decided.gate, decided.answered
    verdict, reason = verdict_of(gate, run.config, run.spec.name, draft.report.costs, same_lms=ask_the_same(programs))
    if live and verdict in OPEN:
        return start_proof(run, draft, finalist, gate, charge.alpha - gate.spent, active=active, answered=answered)
    manifest = manifest_of(run, draft.report, finalist, gate, verdict, reason)
    run.artifacts.save(finalist.stored, manifest)
    if verdict in OPEN:
        decided.record(run.artifacts, verdict, run.job.run_id)
    return conclude(run, draft, manifest, verdict, reason, active=active, answered=answered)


def continue_test(run: ModuleRun, prepared: Prepared, draft: ReportDraft, candidate: CandidateUnderTest) -> Report:
    """Decide by the reviews so far, or compare the candidate on new traces, instead of searching for another."""
    test, programs = candidate.test, (prepared.incumbent.program, candidate.program)
    manifest = run.artifacts.manifest(test.version)
    if manifest is None:
        raise InvalidArtifact(f"{run.spec.name}: the manifest of {test.version} is missing", "restore it from a backup")
    _report_programs(run, draft, programs)
    draft.add(version=test.version, costs=manifest.costs)
    if test.drawn:
        decided = decide_by_reviews(run, draft, test)
    else:
        usable, notes = without_quoted(prepared.split, *programs)
        draft.notes += notes
        drawn = drawn_traces(usable, test.draws, seed=f"{test.version} {test.steps}", without=test.seen)
        if not drawn:
            return draft.end(
                Verdict.INCONCLUSIVE,
                f"the sequential test of {test.version} has {sum(batch.drawn for batch in test.batches)} traces, "
                "and no new held-out ones",
            )
        run.log(f"sequential test of {test.version}: {len(drawn)} new holdout traces, alpha {test.alpha:.2g}")
        decided = compare_drawn(run, draft, test, drawn, programs)
    verdict, reason = verdict_of(
        decided.gate, run.config, run.spec.name, draft.report.costs, same_lms=ask_the_same(programs)
    )
    if verdict not in OPEN:
        manifest = manifest.model_copy(update=measured(draft.report, decided.gate, verdict, reason))
        run.artifacts.record_result(manifest)
    if verdict is not Verdict.PROMOTED:
        decided.record(run.artifacts, verdict, run.job.run_id)
    active, answered = prepared.incumbent.version, decided.answered
    report = conclude(run, draft, manifest, verdict, reason, active=active, answered=answered)
    # The promotion comes first, so that a killed run cannot end the sequential test without it.
    if report.verdict in {Verdict.PROMOTED, Verdict.CANARY}:
        with suppress(PromotionConflict):
            decided.record(run.artifacts, report.verdict, run.job.run_id)
    return report


def _report_programs(run: ModuleRun, draft: ReportDraft, programs: tuple[dspy.Module, dspy.Module]) -> None:
    """Report how incumbent and candidate differ, and which models they ask."""
    names = zip((INCUMBENT, CANDIDATE), programs, strict=True)
    asked = {name: ", ".join(models_asked(program, run.lm.name)) for name, program in names}
    draft.add(changes=changes_between(*programs), program_lms=asked)


def _charge(
    run: ModuleRun, prepared: Prepared, candidate: Program, drawn: Sequence[HoldoutExample]
) -> tuple[LedgerEntry, bool]:
    """Enter a test in the ledger before it begins. Also return whether this attempt had entered it before."""
    artifacts, job = run.artifacts, run.job
    holdout_digest = digest_of([held_out.example for held_out in drawn])
    for _ in range(_LEDGER_TRIES):
        entries = artifacts.ledger()
        charge = next_charge(
            entries,
            attempt=f"{job.attempt or job.run_id} {run.lm.name}",
            epoch=prepared.epoch,
            at=job.window_end,
            candidate_digest=candidate.digest,
            holdout_digest=holdout_digest,
            incumbent=prepared.incumbent.name,
        )
        if (repeated := charge in entries) or artifacts.charge(charge):
            return charge, repeated
    raise PromotionConflict(
        f"{artifacts.tenant_id}/{artifacts.module}: other runs keep taking the next place in the ledger",
        "wait until they have finished",
    )
