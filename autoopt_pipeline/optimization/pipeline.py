"""Optimizes one module of one tenant, from traces to a verdict."""

from collections.abc import Callable

import dspy

from autoopt_pipeline.evaluation.runner import raising_outages
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.lm.probe import enforces_schema
from autoopt_pipeline.lm.progress import PhaseTracker, ProgressCallback, tracking
from autoopt_pipeline.modules.answer_format import JSON_SCHEMA, answer_format
from autoopt_pipeline.optimization.candidate_testing import begin_test, continue_test
from autoopt_pipeline.optimization.dev_labels import labeller_of, with_labelled_dev
from autoopt_pipeline.optimization.earlier_verdicts import (
    observed_version,
    promote_observed,
    promotion_of_lost_run,
    report_earlier_promotion,
    undecided_canary,
)
from autoopt_pipeline.optimization.estimate import (
    SEARCHES,
    LMEstimate,
    estimate_answers,
    estimate_comparison,
    estimate_search,
)
from autoopt_pipeline.optimization.holdout import drawn_traces, without_quoted
from autoopt_pipeline.optimization.job import ModuleRun, OptimizationJob
from autoopt_pipeline.optimization.model_replay import Replayer, most_replayed
from autoopt_pipeline.optimization.preparation import MAX_DEV, Prepared, missing_data, prepare
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.optimization.report_draft import ReportDraft
from autoopt_pipeline.optimization.rollout_comparison import draw_for_rollout
from autoopt_pipeline.optimization.search import check_budget, choosing_examples, least_calls, search
from autoopt_pipeline.registry.program_cost import INCUMBENT
from autoopt_pipeline.registry.promotion_blocks import promotion_block_reason
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.version_store import VersionStore


def optimize(  # noqa: PLR0913 - the models and listeners of one run
    job: OptimizationJob,
    lm: MeteredLM,
    artifacts: VersionStore,
    *,
    teacher: MeteredLM | None = None,
    lm_judge: MeteredLM | None = None,
    ask_anew: Callable[[], MeteredLM] | None = None,
    log: Callable[[str], None] = lambda line: None,
    on_progress: ProgressCallback | None = None,
) -> Report:
    """Search for a better program, and promote it if it is proven better.

    While a sequential test is open, its candidate is tested on new traces instead. `teacher` writes instructions and
    demos; by default `lm` does. `lm_judge` judges disagreements before people do. `ask_anew` makes `lm` without cached
    answers, with the same meter; without it, what serves is not asked again what it was asked before. `log` gets a line
    for each step, and `on_progress` the progress of a long step. Raises `LMUnavailable` if a model fails, and the
    errors of the artifact store.
    """
    with tracking(lm.meter, on_progress) as tracker:
        return _optimize(ModuleRun(job, lm, teacher or lm, lm_judge, artifacts, log, tracker, ask_anew))


def estimate(
    job: OptimizationJob,
    lm: MeteredLM,
    artifacts: VersionStore,
    *,
    teacher: MeteredLM | None = None,
    lm_judge: MeteredLM | None = None,
) -> tuple[LMEstimate, str]:
    """Return what `optimize` would use of language models, and what for, without asking any. Writes nothing."""
    run = ModuleRun(job, lm, teacher or lm, lm_judge, artifacts, lambda line: None, PhaseTracker(lm.meter))
    prepared, draft = prepare(run)
    used, purpose = _next_step_estimate(run, prepared, draft)
    return used + _replay_estimate(run, prepared), purpose


def _optimize(run: ModuleRun) -> Report:
    """Take the first step that is due; most runs search."""
    prepared, draft = prepare(run)
    active = prepared.incumbent.version
    run.artifacts.index_serving(prepared.transitions)  # in case that a writer was killed before it could
    if transition := promotion_of_lost_run(run.job, prepared.transitions):
        return report_earlier_promotion(run, draft, transition)
    with run.lm.meter.holding_back(least_calls(prepared.split, prepared.start)):
        draft.notes += _replay(run, prepared)
        draft.notes += draw_for_rollout(
            run.job, prepared.rollout, prepared.requests, prepared.served, run.lm, run.artifacts, run.tracker
        )
    if prepared.rollout:
        run.artifacts.keep_indexed(prepared.rollout.transition.at)
    if canary := undecided_canary(run, prepared.rollout):
        return draft.end(Verdict.CANARY, canary)
    if observed := observed_version(run, draft, active=active):
        return promote_observed(run, draft, observed, active=active)
    if candidate := prepared.under_test:
        return continue_test(run, prepared, draft, candidate)
    if missing := missing_data(prepared.split):
        return draft.end(*missing)
    return _search_and_test(run, prepared, draft)


def _replay(run: ModuleRun, prepared: Prepared) -> list[str]:
    """Ask what serves again what it was asked before. Returns notes for the report."""
    incumbent = prepared.incumbent
    if run.ask_anew is None or incumbent.cannot_serve:
        return []
    replayer = Replayer(run.job, incumbent.version, incumbent.program, run.ask_anew, run.artifacts, run.tracker)
    return replayer.replay(prepared.held_out)


def _search_and_test(run: ModuleRun, prepared: Prepared, draft: ReportDraft) -> Report:
    """Search for a better program, and test it on the holdout if there is one."""
    incumbent, start = prepared.incumbent, prepared.start
    check_budget(run.config, prepared.split, start)
    if run.job.only is None:
        draft.add(estimate=(_search_estimate(run, prepared) + _replay_estimate(run, prepared)).known)
    labeller = labeller_of(run, prepared)
    split = with_labelled_dev(run, draft, prepared.split, labeller)
    searched = search(
        run.spec,
        run.config,
        run.labels,
        split,
        incumbent.program,
        start,
        run.lm,
        run.teacher,
        run.log,
        run.tracker,
        others=_racing(run.lm, labeller),
        only=run.job.only,
        try_schema=_should_try_schema(run, draft, incumbent.program),
        retired=incumbent.retired,
        encoder=run.job.encoder,
    )
    draft.notes += searched.notes
    draft.add(
        tried=searched.tried,
        incumbent_dev_score=searched.incumbent_dev_score,
        unread={INCUMBENT: searched.incumbent_unread} if searched.incumbent_unread else {},
        costs={INCUMBENT: searched.incumbent_cost} if searched.incumbent_cost else {},
    )
    if searched.finalist is None:
        return draft.end(
            Verdict.REJECTED,
            f"no candidate beat the incumbent on the {len(choosing_examples(split))} dev examples "
            f"({100 * searched.incumbent_dev_score:.1f} %), so the holdout was not used",
        )
    if block := promotion_block_reason(run.artifacts, searched.finalist.stored.digest):
        return draft.end(Verdict.REJECTED, f"{block}, so the holdout was not used")
    return begin_test(run, prepared, draft, searched.finalist)


def _racing(lm: MeteredLM, labeller: MeteredLM | None) -> list[MeteredLM]:
    """Return the candidate models that race. One that labels dev does not, because it always agrees with itself."""
    return [other for other in lm.others.values() if labeller is None or other.name != labeller.name]


def _should_try_schema(run: ModuleRun, draft: ReportDraft, incumbent: dspy.Module) -> bool:
    """Whether the format is `auto`, some predictor uses no JSON schema, and the endpoint enforces one."""
    if run.lm.answer_format != "auto" or all(
        answer_format(predictor.signature) == JSON_SCHEMA for predictor in incumbent.predictors()
    ):
        return False
    with raising_outages():
        enforced = enforces_schema(run.lm.lm)
    if not enforced:
        draft.notes.append("answers use DSPy's chat format, because the endpoint enforces no JSON schema")
    return enforced


def _next_step_estimate(run: ModuleRun, prepared: Prepared, draft: ReportDraft) -> tuple[LMEstimate, str]:
    """Return what the first step that is due would use, and what for."""
    incumbent = prepared.incumbent
    if canary := undecided_canary(run, prepared.rollout):
        return LMEstimate(), canary
    if observed := observed_version(run, draft, active=incumbent.version):
        return LMEstimate(), f"{observed.version} was proven while the mode was observe"
    if candidate := prepared.under_test:
        test, programs = candidate.test, (incumbent.program, candidate.program)
        usable, _ = without_quoted(prepared.split, *programs)
        new = [] if test.drawn else drawn_traces(usable, test.draws, seed=test.version, without=test.seen)
        what = f"{len(new)} new traces" if new else "the reviews so far"
        return (
            estimate_comparison(run.spec, programs, [held_out.example for held_out in new], run.lm),
            f"the sequential test of {test.version} goes on with {what}",
        )
    if missing := missing_data(prepared.split):
        return LMEstimate(), f"{missing[0].value}: {missing[1]}"
    return _search_estimate(run, prepared), SEARCHES


def _search_estimate(run: ModuleRun, prepared: Prepared) -> LMEstimate:
    labeller = labeller_of(run, prepared)
    return estimate_search(
        run.spec,
        run.config,
        run.labels,
        prepared.split,
        (prepared.incumbent.program, prepared.start),
        run.lm,
        run.teacher,
        others=_racing(run.lm, labeller),
        labeller=labeller,
        most_labelled=MAX_DEV,
    )


def _replay_estimate(run: ModuleRun, prepared: Prepared) -> LMEstimate:
    incumbent = prepared.incumbent.program
    asked = prepared.held_out[: most_replayed(run.config, incumbent)]
    return estimate_answers(run.spec, incumbent, asked, run.lm)
