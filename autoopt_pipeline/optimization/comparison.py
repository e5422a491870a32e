"""Compares a candidate with the incumbent on drawn traces, and decides as far as right answers are known."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import dspy

from autoopt_pipeline.evaluation.cases import PairedCase
from autoopt_pipeline.evaluation.gate import GateDecision, decide, reviews_needed
from autoopt_pipeline.evaluation.runner import answer_all, costs_of, grade, unread_counts
from autoopt_pipeline.evaluation.sequential_test import Batch, known_batch
from autoopt_pipeline.evaluation.sequential_test_log import SequentialTest, append_step
from autoopt_pipeline.evaluation.split import HoldoutExample
from autoopt_pipeline.lm.metering import BudgetExhausted
from autoopt_pipeline.modules.named_model import named_models
from autoopt_pipeline.modules.spec import Example, Provenance
from autoopt_pipeline.optimization.disagreements import order_for_review, resolve
from autoopt_pipeline.optimization.job import ModuleRun
from autoopt_pipeline.optimization.lm_judge import judge_disagreements
from autoopt_pipeline.optimization.model_replay import Answered
from autoopt_pipeline.optimization.report import ComparedExample, compared
from autoopt_pipeline.optimization.report_draft import ReportDraft
from autoopt_pipeline.optimization.search import budget_too_small
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT, saving
from autoopt_pipeline.registry.records import DrawnTrace, Verdict
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.text import percent


@dataclass(frozen=True)
class BatchDecision:
    """The gate's decision with a new batch, and what the test's next step records of it.

    `seen` are the normalized queries that cannot be drawn later, `drawn` the traces that were drawn now, and `known`
    how many of their disagreements had a label, before the language model `judge` was asked. `answered` is what the
    candidate answered now.
    """

    test: SequentialTest
    batch: Batch
    gate: GateDecision
    seen: Collection[str]
    drawn: Sequence[DrawnTrace]
    known: int
    judge: str | None
    answered: Answered = ()

    def record(self, artifacts: VersionStore, verdict: Verdict, run_id: str) -> None:
        """Append the step with the verdict that followed. Raises `PromotionConflict` if another run was first."""
        awaiting = self.gate.verdict is Verdict.AWAITING_REVIEWS
        if awaiting and self.test.drawn:
            return  # they are recorded already
        append = partial(append_step, artifacts, self.test, verdict, run_id=run_id, seen=self.seen, judge=self.judge)
        if awaiting:
            append(drawn=self.drawn, known=self.known)
        else:
            append(batch=self.batch)


def compare_drawn(
    run: ModuleRun,
    draft: ReportDraft,
    test: SequentialTest,
    drawn: Sequence[HoldoutExample],
    programs: tuple[dspy.Module, dspy.Module],
    guard: Sequence[HoldoutExample] = (),
    learnt: frozenset[str] = frozenset(),
) -> BatchDecision:
    """Let both `programs`, incumbent and candidate, answer drawn traces, and decide as far as right answers are known.

    The candidate was made and chosen with the queries in `learnt`, so they cannot be drawn later, either.
    """
    rows = _answer(run, draft, programs, [*drawn, *guard])
    if test.is_new:
        test = replace(test, max_loss=_max_loss(run, draft, test, programs))
    on_drawn, on_guard = rows[: len(drawn)], [row.case for row in rows[len(drawn) :]]
    answered = [(row.example, row.candidate) for row in on_drawn]
    seen = learnt.union(query for held_out in drawn for query in held_out.group)
    if test.draws == "reviewed":
        draft.add(compared=tuple(on_drawn))
        decided = _decide(draft, test, known_batch(row.case for row in on_drawn), on_guard, seen=seen)
    else:
        traces, known = order_for_review(on_drawn, seed=test.version)
        traces = judge_disagreements(run, draft, test, traces, on_drawn, known=known)
        batch, resolved = resolve(run.spec, traces, _reviewed(row.example for row in on_drawn), (), known=known)
        draft.add(compared=tuple(resolved))
        decided = _decide(draft, test, batch, seen=seen, drawn=traces, known=known)
    return replace(decided, answered=answered)


def decide_by_reviews(run: ModuleRun, draft: ReportDraft, test: SequentialTest) -> BatchDecision:
    """Read the reviews of the drawn traces, whenever these were made, and decide as far as they go."""
    spans = {trace.span_id for trace in test.drawn}
    decisions = [decision for decision in run.job.decisions if decision.span_id in spans]
    built = run.spec.build_examples(run.labels, decisions, run.job.redact)
    readable = {example.span_id for example in built.examples}
    undecided = {
        decision.span_id
        for decision in decisions
        if decision.span_id not in readable and any(a.kind == "HUMAN" for a in decision.annotations)
    }
    gone = spans - {decision.span_id for decision in decisions}
    batch, resolved = resolve(run.spec, test.drawn, _reviewed(built.examples), undecided | gone, known=test.known)
    draft.add(compared=tuple(resolved))
    return _decide(draft, test, batch, known=test.known)


def ask_the_same(programs: tuple[dspy.Module, dspy.Module]) -> bool:
    """Whether both programs ask the same language models."""
    incumbent, candidate = map(named_models, programs)
    return incumbent == candidate


def _reviewed(examples: Iterable[Example]) -> dict[str, Example]:
    """Return the examples that have a person's label, by span."""
    return {example.span_id: example for example in examples if example.provenance is Provenance.HUMAN}


def _decide(
    draft: ReportDraft,
    test: SequentialTest,
    batch: Batch,
    guard: Sequence[PairedCase] = (),
    *,
    seen: Collection[str] = (),
    drawn: Sequence[DrawnTrace] = (),
    known: int = 0,
) -> BatchDecision:
    batches = [*test.batches, batch]
    gate = decide(batches, guard, alpha=test.alpha, max_loss=test.max_loss)
    awaiting = gate.verdict is Verdict.AWAITING_REVIEWS
    draft.add(gate=gate, reviews_needed=reviews_needed(batches, test.alpha, test.max_loss) if awaiting else 0)
    judge = test.judge if test.drawn else draft.report.judge_lm
    return BatchDecision(test, batch, gate, seen, drawn, known, judge)


def _answer(
    run: ModuleRun,
    draft: ReportDraft,
    programs: tuple[dspy.Module, dspy.Module],
    held_out: Sequence[HoldoutExample],
) -> list[ComparedExample]:
    """Let incumbent and candidate answer. Raises as `answer_all` does, and `BudgetTooSmall`."""
    spec, lm, (incumbent, candidate) = run.spec, run.lm, programs
    examples = [each.example for each in held_out]
    try:
        with run.tracker.phase("incumbent on the holdout", len(examples)) as answered:
            before = answer_all(spec, incumbent, examples, lm, must_be_readable=True, answered=answered)
        with run.tracker.phase("candidate on the holdout", len(examples)) as answered:
            after = answer_all(spec, candidate, examples, lm, answered=answered)
    except BudgetExhausted as e:
        raise budget_too_small(run.config, str(e)) from None
    counts = {INCUMBENT: unread_counts(before), CANDIDATE: unread_counts(after)}
    draft.add(
        unread={program: count for program, count in counts.items() if count},
        costs=costs_of({INCUMBENT: before, CANDIDATE: after}),
    )
    return compared(examples, before, after, (grade(spec, examples, before), grade(spec, examples, after)))


def _max_loss(
    run: ModuleRun, draft: ReportDraft, test: SequentialTest, programs: tuple[dspy.Module, dspy.Module]
) -> float | None:
    """Return what the candidate may lose, if it saves enough on the drawn traces; else None."""
    objective, costs = run.config.objective, draft.report.costs
    both = costs.get(CANDIDATE), costs.get(INCUMBENT)
    saved = saving(*both, objective.min_saving, same_lms=ask_the_same(programs))
    live = test.draws == "all" and run.config.evidence_for(run.spec.name) == "live"
    if saved is None or not objective.max_loss or live:
        return None  # outcomes in production prove only what is better
    draft.notes.append(f"{saved}, so the candidate need not be better, but within {percent(objective.max_loss)} points")
    return objective.max_loss
