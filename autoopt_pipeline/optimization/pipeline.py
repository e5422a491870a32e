"""Optimizes one module of one tenant, from traces to a verdict."""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

import dspy

from autoopt_pipeline.errors import InvalidArtifact, PromotionConflict
from autoopt_pipeline.evaluation.alpha_ledger import next_charge
from autoopt_pipeline.evaluation.cases import PairedCase
from autoopt_pipeline.evaluation.gate import (
    MIN_HOLDOUT,
    Calibration,
    Comparison,
    GateDecision,
    decide,
    reviews_needed,
)
from autoopt_pipeline.evaluation.judge_agreement import agreement_with
from autoopt_pipeline.evaluation.runner import Answer, answer_all, costs_of, grade, raising_outages, unread_counts
from autoopt_pipeline.evaluation.sequential_test import MAX_BATCH, Batch, known_batch
from autoopt_pipeline.evaluation.sequential_test_log import (
    OPEN,
    Draws,
    SequentialTest,
    SequentialTestConditions,
    append_step,
    find_open_test,
    new_test,
    stored_case,
)
from autoopt_pipeline.evaluation.split import HoldoutExample, Split, split_examples
from autoopt_pipeline.lm.metering import BudgetExhausted, Role
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.lm.probe import enforces_schema
from autoopt_pipeline.lm.progress import PhaseTracker, ProgressCallback, tracking
from autoopt_pipeline.modules.answer_format import CHAT, JSON_SCHEMA, answer_format, in_format
from autoopt_pipeline.modules.named_model import models_asked, named_models
from autoopt_pipeline.modules.similarity import quotes
from autoopt_pipeline.modules.spec import Example, ExampleSet, ModuleSpec, Provenance
from autoopt_pipeline.optimization.dev_labels import labelled_by, needs_labels
from autoopt_pipeline.optimization.disagreements import order_for_review, resolve
from autoopt_pipeline.optimization.estimate import (
    SEARCHES,
    LMEstimate,
    estimate_answers,
    estimate_comparison,
    estimate_search,
)
from autoopt_pipeline.optimization.holdout import check_no_demo_is_held_out, digest_of, drawn_traces, known_queries
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.optimization.lm_judge import judge_answers, judged_cases
from autoopt_pipeline.optimization.model_replay import Replayer, most_replayed, replay_set
from autoopt_pipeline.optimization.optimizers import SEED
from autoopt_pipeline.optimization.report import ComparedExample, Report, changes_between, compared, sizes
from autoopt_pipeline.optimization.rollout_comparison import draw_for_rollout
from autoopt_pipeline.optimization.search import (
    MIN_DEV,
    Finalist,
    budget_too_small,
    check_budget,
    choosing_examples,
    least_calls,
    search,
)
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT, ProgramCost, dollar_ratio, saving
from autoopt_pipeline.registry.promotion_blocks import promotion_block_reason
from autoopt_pipeline.registry.records import (
    PASSED,
    DrawnTrace,
    LedgerEntry,
    Manifest,
    Program,
    Transition,
    Verdict,
    check_models,
    new_version_id,
    program_facts,
)
from autoopt_pipeline.registry.serialization import compose, deserialize
from autoopt_pipeline.registry.transitions import Rollout, active_rollout
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.analysis import outcomes_to_prove
from autoopt_pipeline.rollouts.rollout import roll_out, start_canary
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.text import percent

# Fewest training examples for a search.
MIN_TRAIN = 20

# Most examples that are used: the newest. More would hardly improve the verdict, and cost two calls each.
MAX_TRAIN, MAX_DEV, MAX_HOLDOUT = 2000, 100, MAX_BATCH

_LEDGER_TRIES = 20

# The gain and the incumbent's score for which the report says how long a proof in production takes.
PROVEN_GAIN, USUAL_SCORE = 0.08, 0.7


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
        return _Optimization(job, lm, teacher or lm, lm_judge, artifacts, log, tracker, ask_anew).run()


def estimate(
    job: OptimizationJob,
    lm: MeteredLM,
    artifacts: VersionStore,
    *,
    teacher: MeteredLM | None = None,
    lm_judge: MeteredLM | None = None,
) -> tuple[LMEstimate, str]:
    """Return what `optimize` would use of language models, and what for, without asking any."""
    tracker = PhaseTracker(lm.meter)
    return _Optimization(job, lm, teacher or lm, lm_judge, artifacts, lambda line: None, tracker).estimate()


class _Optimization:
    """One optimization. `draft` is the report as far as it is known, so that every step can end with it."""

    def __init__(  # noqa: PLR0913 - as `optimize`
        self,
        job: OptimizationJob,
        lm: MeteredLM,
        teacher: MeteredLM,
        lm_judge: MeteredLM | None,
        artifacts: VersionStore,
        log: Callable[[str], None],
        tracker: PhaseTracker,
        ask_anew: Callable[[], MeteredLM] | None = None,
    ) -> None:
        self.job, self.spec, self.config = job, job.spec, job.config
        self.lm, self.teacher, self.lm_judge, self.artifacts = lm, teacher, lm_judge, artifacts
        self.log, self.tracker, self.ask_anew = log, tracker, ask_anew
        self.started = time.monotonic()
        self.labels = labels_of(job.spec, job.config)
        active = artifacts.active()
        self.incumbent_version = active.version if active else None
        self.transitions = artifacts.transitions()
        self.epoch = sum(transition.resets_alpha_budget for transition in self.transitions)
        self.rollout = active_rollout(self.transitions[-1] if self.transitions else None)
        self.steps_seen = artifacts.last_sequential_test_step()
        self.conditions = SequentialTestConditions(
            self._incumbent_name(), lm.name, tuple(label.name for label in self.labels)
        )
        self.notes: list[str] = []
        self.answered: list[tuple[Example, Answer]] = []

    def run(self) -> Report:
        test, candidate, incumbent, split = self._prepare()
        self.artifacts.index_serving(self.transitions)  # in case that a writer was killed before it could
        if transition := self._earlier_promotion():
            return self._report(*self._earlier_verdict(transition))
        with self.lm.meter.holding_back(least_calls(split, self.start)):
            self.notes += self._replay(incumbent, split)
            self.notes += draw_for_rollout(
                self.job, self.rollout, self.requests, self.served, self.lm, self.artifacts, self.tracker
            )
        if canary := self._undecided_canary():
            return self._report(Verdict.CANARY, canary)
        if observed := self._observed():
            return self._promote_observed(observed)
        if test and candidate:
            return self._continue_test(test, candidate, incumbent, split)
        if missing := _missing_data(split):
            return self._report(*missing)
        check_budget(self.config, split, self.start)
        if self.job.only is None:
            expected = self._estimated_search(incumbent, split) + self._estimated_replay(incumbent, split)
            self.draft = replace(self.draft, estimate=expected.known)
        labeller = self._labeller(split, incumbent)
        split = self._with_labelled_dev(split, labeller)
        searched = search(
            self.spec,
            self.config,
            self.labels,
            split,
            incumbent,
            self.start,
            self.lm,
            self.teacher,
            self.log,
            self.tracker,
            others=_racing(self.lm, labeller),
            only=self.job.only,
            try_schema=self._should_try_schema(incumbent),
            retired=self.retired,
            encoder=self.job.encoder,
        )
        self.notes += searched.notes
        self.draft = replace(
            self.draft,
            tried=searched.tried,
            incumbent_dev_score=searched.incumbent_dev_score,
            unread={INCUMBENT: searched.incumbent_unread} if searched.incumbent_unread else {},
            costs={INCUMBENT: searched.incumbent_cost} if searched.incumbent_cost else {},
        )
        if searched.finalist is None:
            return self._report(
                Verdict.REJECTED,
                f"no candidate beat the incumbent on the {len(choosing_examples(split))} dev examples "
                f"({100 * searched.incumbent_dev_score:.1f} %), so the holdout was not used",
            )
        if block := promotion_block_reason(self.artifacts, searched.finalist.stored.digest):
            return self._report(Verdict.REJECTED, f"{block}, so the holdout was not used")
        return self._judge(searched.finalist, incumbent, split)

    def _replay(self, incumbent: dspy.Module, split: Split) -> list[str]:
        """Ask what serves again what it was asked before. Returns notes for the report."""
        cannot_serve = self.incumbent_version is not None and self.conditions.incumbent is None
        if self.ask_anew is None or cannot_serve:
            return []
        return Replayer(
            self.job, self.incumbent_version, incumbent, self.ask_anew, self.artifacts, self.tracker
        ).replay(_held_out(split))

    def _keep_answers(self, version: str, lm: str) -> None:
        """Keep what the candidate answered on the holdout, so that later runs can ask it again."""
        if self.answered:
            self.artifacts.keep_replay_set(replay_set(version, self.answered, lm))

    def _prepare(self) -> tuple[SequentialTest | None, dspy.Module | None, dspy.Module, Split]:
        """Return the open test with its candidate, the incumbent, and the examples. Asks no model."""
        learnable = [decision for decision in self.job.decisions if decision.time >= self.job.window_start]
        built = self.spec.build_examples(self.labels, learnable, self.job.redact)
        chosen = None if self.lm.answer_format == "auto" else self.lm.answer_format
        self.served = served = compose(
            self.spec,
            self.labels,
            self.job.parts,
            self._note_refused,
            chosen or CHAT,
            self.lm.models,
            encoder=self.job.encoder,
        )
        self.requests = self.spec.build_requests(self.labels, learnable, self.job.redact)
        incumbent = self._incumbent(served)
        self.start = start = in_format(served, chosen) if chosen else served
        test, candidate = self._candidate_under_test()
        split = split_examples(
            built.examples,
            self.requests,
            max_holdout=MAX_HOLDOUT,
            max_dev=MAX_DEV,
            max_train=MAX_TRAIN,
            shown=known_queries(built, [program for program in (incumbent, start, candidate, self.retired) if program]),
        )
        self.draft = self._draft(built, split)
        self.log(f"{len(learnable)} decisions -> {len(built.examples)} examples: {_listed(sizes(split))}")
        return test, candidate, incumbent, split

    def estimate(self) -> tuple[LMEstimate, str]:
        """Return what a run would use of language models, and what for. Asks none, and writes nothing."""
        test, candidate, incumbent, split = self._prepare()
        used, what = self._estimated(test, candidate, incumbent, split)
        return used + self._estimated_replay(incumbent, split), what

    def _estimated_replay(self, incumbent: dspy.Module, split: Split) -> LMEstimate:
        asked = _held_out(split)[: most_replayed(self.config, incumbent)]
        return estimate_answers(self.spec, incumbent, asked, self.lm)

    def _estimated(
        self, test: SequentialTest | None, candidate: dspy.Module | None, incumbent: dspy.Module, split: Split
    ) -> tuple[LMEstimate, str]:
        if self.rollout and self.rollout.is_canary and self.config.rollout.monitor:
            return LMEstimate(), _describe_canary(self.rollout)
        if observed := self._observed():
            return LMEstimate(), f"{observed.version} was proven while the mode was observe"
        if test and candidate:
            usable = self._without_quoted(split, incumbent, candidate)
            new = [] if test.drawn else drawn_traces(usable, test.draws, seed=test.version, without=test.seen)
            asked = [held_out.example for held_out in new]
            what = f"{len(asked)} new traces" if asked else "the reviews so far"
            return (
                estimate_comparison(self.spec, (incumbent, candidate), asked, self.lm),
                f"the sequential test of {test.version} goes on with {what}",
            )
        if missing := _missing_data(split):
            return LMEstimate(), f"{missing[0].value}: {missing[1]}"
        return self._estimated_search(incumbent, split), SEARCHES

    def _estimated_search(self, incumbent: dspy.Module, split: Split) -> LMEstimate:
        labeller = self._labeller(split, incumbent)
        return estimate_search(
            self.spec,
            self.config,
            self.labels,
            split,
            (incumbent, self.start),
            self.lm,
            self.teacher,
            others=_racing(self.lm, labeller),
            labeller=labeller,
            most_labelled=MAX_DEV,
        )

    def _labeller(self, split: Split, incumbent: dspy.Module) -> MeteredLM | None:
        """Return the judge or the teacher if it labels dev: too few examples are reviewed, and others answer."""
        labeller = self.lm_judge or self.teacher
        answering = {self.lm.name, *named_models(incumbent)}
        return labeller if labeller.name not in answering and needs_labels(split) else None

    def _with_labelled_dev(self, split: Split, labeller: MeteredLM | None) -> Split:
        """Let another model label the dev examples that nobody has reviewed."""
        if labeller is None:
            return split
        try:
            with self.tracker.phase("labels of dev", min(MAX_DEV, len(split.dev_requests))) as answered:
                labelled = labelled_by(labeller, self.spec, split, self._baseline(), most=MAX_DEV, answered=answered)
        except BudgetExhausted as e:
            raise budget_too_small(self.config, str(e)) from None
        count = sum(example.provenance is Provenance.JUDGE for example in labelled.dev)
        self.notes.append(f"{labeller.name} labelled {count} dev examples that nobody has reviewed")
        return labelled if len(labelled.dev) >= MIN_DEV else split

    def _baseline(self) -> dspy.Module:
        return self.spec.build_program(self.labels)

    def _judged(
        self, test: SequentialTest, traces: Sequence[DrawnTrace], rows: Sequence[ComparedExample], *, known: int
    ) -> list[DrawnTrace]:
        """Let the judge answer the disagreements that had no label, and choose those that people are asked about.

        A test has one form from its first traces on: only one that has spared reviews before may spare any more.
        """
        judge = self.lm_judge
        if judge is None or self.config.evidence_for(self.spec.name) == "live":
            return list(traces)
        by_span = {row.example.span_id: row for row in rows}
        asked = [by_span[trace.span_id] for trace in traces if not trace.alike][known:]
        asked_spans = {row.example.span_id for row in asked}
        try:
            with self.tracker.phase("judge on disagreements", len(asked)) as answered:
                examples = [row.example for row in asked]
                labelled = judge_answers(judge, self.spec, self._baseline(), examples, answered=answered)
        except BudgetExhausted:
            self.notes.append("the budget was spent before the judge had answered, so people judge all disagreements")
            return list(traces)
        agreement = agreement_with(judge.name, self.artifacts.sequential_test_steps())
        spares = (
            self.config.judge is not None
            and self.config.judge.mode == "calibrated"
            and agreement.may_spare_reviews
            and (test.is_new or any(batch.spares_reviews for batch in test.batches))
        )
        cases = judged_cases(self.spec, asked, labelled, spares=spares, seed=test.version)
        judged = [
            trace.model_copy(update={"judged": stored_case(cases[trace.span_id]) if trace.span_id in cases else None})
            for trace in traces
        ]
        left = sum(trace.is_asked for trace in judged if trace.span_id in asked_spans)
        if unread := len(asked) - len(cases):
            self.notes.append(f"{unread} of {len(asked)} answers of {judge.name} could not be read")
        self.draft = replace(self.draft, judge_lm=judge.name)
        self.notes.append(
            f"{judge.name} judged {len(cases)} disagreements, and people are asked about {left}: {agreement}"
        )
        return judged

    def _should_try_schema(self, incumbent: dspy.Module) -> bool:
        """Whether the format is `auto`, some predictor uses no JSON schema, and the endpoint enforces one."""
        if self.lm.answer_format != "auto" or all(
            answer_format(predictor.signature) == JSON_SCHEMA for predictor in incumbent.predictors()
        ):
            return False
        with raising_outages():
            enforced = enforces_schema(self.lm.lm)
        if not enforced:
            self.notes.append("answers use DSPy's chat format, because the endpoint enforces no JSON schema")
        return enforced

    def _earlier_promotion(self) -> Transition | None:
        """Return the last transition if a lost run of this attempt made it, because that run could not report it."""
        last = self.transitions[-1] if self.transitions else None
        return last if last and last.actor in map(_actor, self.job.lost_runs) else None

    def _earlier_verdict(self, transition: Transition) -> tuple[Verdict, str]:
        """Return the verdict and reason of an earlier promotion, and report the facts in its version's manifest."""
        rollout = active_rollout(transition)
        canary = rollout if rollout and rollout.is_canary else None
        manifest = self.artifacts.manifest(str(canary.version if canary else transition.to_version))
        self.notes.append(f"{transition.actor} reached this verdict before it was lost, so no search was made again")
        if manifest:
            self.draft = replace(
                self.draft,
                version=manifest.version,
                active_version=transition.to_version,
                incumbent_version=transition.from_version,
                optimizer=manifest.optimizer,
                # A manifest is written before the last step of a sequential test.
                gate=self._decision_in(manifest) if manifest.gate and manifest.verdict not in OPEN else None,
            )
        return (
            (Verdict.CANARY, f"{transition.reason}; {_describe_canary(canary)}")
            if canary
            else (Verdict.PROMOTED, transition.reason)
        )

    def _judge(self, finalist: Finalist, incumbent: dspy.Module, split: Split) -> Report:
        """Charge a test of the finalist, and compare it with the incumbent on a first batch of drawn traces."""
        self._draft_comparison(incumbent, finalist.program)
        self.draft = replace(self.draft, optimizer=finalist.optimizer)
        check_no_demo_is_held_out(finalist.program, split)
        split = self._without_quoted(split, incumbent, finalist.program)
        if missing := _missing_data(split):
            return self._report(*missing)
        draws: Draws = "reviewed" if len(split.holdout) >= MIN_HOLDOUT else "all"
        version = new_version_id(finalist.stored, self.job.window_end)
        drawn = drawn_traces(split, draws, seed=finalist.stored.digest, without=frozenset())
        guard = split.guard if draws == "reviewed" else ()
        charge, repeated = self._charge(finalist.stored, [*drawn, *guard])
        manifest = self.artifacts.manifest(version) if repeated else None
        if manifest and manifest.gate.get("alpha") == charge.alpha and manifest.verdict not in OPEN:
            # The model may answer differently now, and to repeat a test until it succeeds would promote by luck.
            self.notes.append(
                f"run {manifest.run_id} has judged this candidate on these traces, and its verdict stands"
            )
            self.draft = replace(self.draft, gate=self._decision_in(manifest))
            return self._conclude(manifest, Verdict(manifest.verdict), manifest.reason)
        if any(step.version == version for step in self.artifacts.sequential_test_steps()):
            return self._report(Verdict.REJECTED, f"the sequential test of {version} has already ended")
        test = new_test(version, self.conditions, after=self.steps_seen, alpha=charge.alpha, draws=draws)
        live = draws == "all" and self.config.evidence_for(self.spec.name) == "live"
        self.log(f"finalist {finalist.optimizer}: {len(drawn)} holdout traces, alpha {charge.alpha:.2g}")
        batch = self._compare_drawn(test, drawn, incumbent, finalist.program, guard, learnt=split.learnt)
        verdict, reason = self._awaiting_approval(batch.decision)
        if live and verdict in OPEN:
            return self._start_proof(finalist, batch.decision, charge.alpha - batch.decision.spent)
        manifest = self._manifest(finalist, batch.decision, verdict, reason)
        self.artifacts.save(finalist.stored, manifest)
        if verdict in OPEN:
            batch.append(verdict)
        return self._conclude(manifest, verdict, reason)

    def _describe_proof(self, alpha: float) -> str:
        """Say what proves the candidate in production, and how long that takes at the traffic of the window."""
        fraction = self._proving_fraction
        needed = outcomes_to_prove(PROVEN_GAIN, alpha, score=USUAL_SCORE, per_canary=(1 - fraction) / fraction)
        days = (self.job.window_end - self.job.window_start) / timedelta(days=1)
        daily = len(self.job.decisions) / days * fraction if days else 0.0
        takes = f", {math.ceil(needed / daily)} days at this traffic if all outcomes are reported" if daily else ""
        return (
            f"may be better; {100 * fraction:.4g} % of requests go to it until outcomes prove it, at alpha "
            f"{alpha:.2g}: some {needed} of its outcomes for +{100 * PROVEN_GAIN:.0f} points{takes}"
        )

    @property
    def _proving_fraction(self) -> float:
        return self.config.rollout.canary_fraction or self.config.rollout.holdback_fraction

    def _start_proof(self, finalist: Finalist, decision: GateDecision, alpha: float) -> Report:
        """Let the candidate prove itself in production, unless the active version has changed meanwhile."""
        verdict, reason = Verdict.CANARY, self._describe_proof(alpha)
        manifest = self._manifest(finalist, decision, Verdict.INCONCLUSIVE, reason)
        self.artifacts.save(finalist.stored, manifest)
        self._keep_answers(manifest.version, manifest.lm)
        try:
            start_canary(
                self.artifacts,
                manifest.version,
                expected=self.incumbent_version,
                actor=_actor(self.job.run_id),
                reason=reason,
                fraction=self._proving_fraction,
                proving_alpha=alpha,
            )
        except PromotionConflict as e:
            verdict, reason = Verdict.STALE, str(e)
        self.draft = replace(
            self.draft, version=manifest.version, active_version=self.incumbent_version, reviews_needed=0
        )
        return self._report(verdict, reason)

    def _continue_test(
        self, test: SequentialTest, candidate: dspy.Module, incumbent: dspy.Module, split: Split
    ) -> Report:
        """Decide by the reviews so far, or compare the candidate on new traces, instead of searching for another."""
        manifest = self.artifacts.manifest(test.version)
        self._draft_comparison(incumbent, candidate)
        self.draft = replace(self.draft, version=test.version, costs=manifest.costs if manifest else {})
        if test.drawn:
            batch = self._resolve(test)
        else:
            usable = self._without_quoted(split, incumbent, candidate)
            drawn = drawn_traces(usable, test.draws, seed=f"{test.version} {test.steps}", without=test.seen)
            if not drawn:
                return self._report(
                    Verdict.INCONCLUSIVE,
                    f"the sequential test of {test.version} has {sum(batch.drawn for batch in test.batches)} traces, "
                    "and no new held-out ones",
                )
            self.log(f"sequential test of {test.version}: {len(drawn)} new holdout traces, alpha {test.alpha:.2g}")
            batch = self._compare_drawn(test, drawn, incumbent, candidate)
        verdict, reason = self._awaiting_approval(batch.decision)
        if manifest and verdict not in OPEN:
            manifest = manifest.model_copy(update=self._measured(batch.decision, verdict, reason))
            self.artifacts.record_result(manifest)
        if verdict is not Verdict.PROMOTED:
            batch.append(verdict)
        report = self._conclude(manifest, verdict, reason)
        # The promotion comes first, so that a killed run cannot end the sequential test without it.
        if report.verdict in {Verdict.PROMOTED, Verdict.CANARY}:
            with suppress(PromotionConflict):
                batch.append(report.verdict)
        return report

    def _draft_comparison(self, incumbent: dspy.Module, candidate: dspy.Module) -> None:
        """Report how two programs differ, and which models they ask."""
        programs = {INCUMBENT: incumbent, CANDIDATE: candidate}
        asked = {name: ", ".join(models_asked(program, self.lm.name)) for name, program in programs.items()}
        self.draft = replace(self.draft, changes=changes_between(incumbent, candidate), program_lms=asked)

    def _compare_drawn(
        self,
        test: SequentialTest,
        drawn: Sequence[HoldoutExample],
        incumbent: dspy.Module,
        candidate: dspy.Module,
        guard: Sequence[HoldoutExample] = (),
        learnt: frozenset[str] = frozenset(),
    ) -> "_BatchStep":
        """Let both programs answer drawn traces, and decide as far as the right answers are known.

        The candidate was made and chosen with the queries in `learnt`, so they cannot be drawn later, either.
        """
        rows = self._compare(incumbent, candidate, [*drawn, *guard])
        if test.is_new:
            same_lms = named_models(incumbent) == named_models(candidate)
            test = replace(test, max_loss=self._max_loss(test.draws, same_lms=same_lms))
        self.answered = [(row.example, row.candidate) for row in rows[: len(drawn)]]
        on_drawn, on_guard = rows[: len(drawn)], [row.case for row in rows[len(drawn) :]]
        seen = learnt.union(query for held_out in drawn for query in held_out.group)
        if test.draws == "reviewed":
            self.draft = replace(self.draft, compared=tuple(on_drawn))
            return self._decide(test, known_batch(row.case for row in on_drawn), on_guard, seen=seen)
        traces, known = order_for_review(on_drawn, seed=test.version)
        traces = self._judged(test, traces, on_drawn, known=known)
        return self._decide_drawn(test, traces, known, {row.example.span_id: row.example for row in on_drawn}, seen)

    def _resolve(self, test: SequentialTest) -> "_BatchStep":
        """Read the reviews of the drawn traces, whenever these were made."""
        spans = {trace.span_id for trace in test.drawn}
        decisions = [decision for decision in self.job.decisions if decision.span_id in spans]
        built = self.spec.build_examples(self.labels, decisions, self.job.redact)
        examples = {example.span_id: example for example in built.examples}
        undecided = {
            decision.span_id
            for decision in decisions
            if decision.span_id not in examples and any(a.kind == "HUMAN" for a in decision.annotations)
        }
        gone = spans - {decision.span_id for decision in decisions}
        return self._decide_drawn(test, test.drawn, test.known, examples, (), ties=undecided | gone)

    def _decide_drawn(
        self,
        test: SequentialTest,
        traces: Sequence[DrawnTrace],
        known: int,
        examples: Mapping[str, Example],
        seen: Collection[str],
        ties: Collection[str] = (),
    ) -> "_BatchStep":
        reviewed = {span: example for span, example in examples.items() if example.provenance is Provenance.HUMAN}
        batch, rows = resolve(self.spec, traces, reviewed, ties, known=known)
        self.draft = replace(self.draft, compared=tuple(rows))
        return self._decide(test, batch, (), seen=seen, drawn=traces if not test.drawn else (), known=known)

    def _decide(
        self,
        test: SequentialTest,
        batch: Batch,
        guard: Sequence[PairedCase],
        *,
        seen: Collection[str],
        drawn: Sequence[DrawnTrace] = (),
        known: int = 0,
    ) -> "_BatchStep":
        batches = [*test.batches, batch]
        decision = decide(batches, guard, alpha=test.alpha, max_loss=test.max_loss)
        awaiting = decision.verdict is Verdict.AWAITING_REVIEWS
        self.draft = replace(
            self.draft,
            gate=decision,
            reviews_needed=reviews_needed(batches, test.alpha, test.max_loss) if awaiting else 0,
        )

        def append(verdict: Verdict) -> None:
            if awaiting and test.drawn:
                return  # they are recorded already
            judge = test.judge if test.drawn else self.draft.judge_lm
            step = partial(append_step, self.artifacts, test, verdict, run_id=self.job.run_id, seen=seen, judge=judge)
            if awaiting:
                step(drawn=drawn, known=known)
            else:
                step(batch=batch)

        return _BatchStep(decision, append)

    def _decision_in(self, manifest: Manifest) -> GateDecision:
        """Return the gate's decision in a manifest. Raises `InvalidArtifact` if the manifest is damaged."""
        gate = manifest.gate
        try:
            verdict = Verdict(manifest.verdict)
            return GateDecision(
                Verdict.PROMOTED if verdict in PASSED else verdict,
                manifest.reason,
                gate["alpha"],
                Comparison(
                    cases=int(gate["cases"]),
                    incumbent_score=manifest.incumbent_score,
                    candidate_score=manifest.candidate_score,
                    gain=gate["gain"],
                    fixed=int(gate["fixed"]),
                    broken=int(gate["broken"]),
                    reviews=int(gate["reviews"]),
                    p_value=gate["p_value"],
                    by_judge=int(gate.get("by_judge", 0)),
                ),
                Calibration(gate["incumbent_brier"], gate["candidate_brier"]) if "incumbent_brier" in gate else None,
                None,
                gate["alpha"],
            )
        except (KeyError, ValueError):
            raise InvalidArtifact(
                f"{self.artifacts.tenant_id}/{self.spec.name}: the manifest of {manifest.version} is damaged",
                "restore it from a backup",
            ) from None

    def _compare(
        self, incumbent: dspy.Module, candidate: dspy.Module, judged: Sequence[HoldoutExample]
    ) -> list[ComparedExample]:
        examples = [held_out.example for held_out in judged]
        try:
            with self.tracker.phase("incumbent on the holdout", len(examples)) as answered:
                before = answer_all(self.spec, incumbent, examples, self.lm, must_be_readable=True, answered=answered)
            with self.tracker.phase("candidate on the holdout", len(examples)) as answered:
                after = answer_all(self.spec, candidate, examples, self.lm, answered=answered)
        except BudgetExhausted as e:
            raise budget_too_small(self.config, str(e)) from None
        counts = {INCUMBENT: unread_counts(before), CANDIDATE: unread_counts(after)}
        self.draft = replace(
            self.draft,
            unread={program: count for program, count in counts.items() if count},
            costs=costs_of({INCUMBENT: before, CANDIDATE: after}),
        )
        grades = grade(self.spec, examples, before), grade(self.spec, examples, after)
        return compared(examples, before, after, grades)

    def _max_loss(self, draws: Draws, *, same_lms: bool) -> float | None:
        """Return what the candidate may lose, if it saves enough on the drawn traces; else None."""
        objective = self.config.objective
        saved = saving(*self._costs, objective.min_saving, same_lms=same_lms)
        live = draws == "all" and self.config.evidence_for(self.spec.name) == "live"
        if saved is None or not objective.max_loss or live:
            return None  # outcomes in production prove only what is better
        self.notes.append(
            f"{saved}, so the candidate need not be better, but within {percent(objective.max_loss)} points"
        )
        return objective.max_loss

    @property
    def _costs(self) -> tuple[ProgramCost | None, ProgramCost | None]:
        """The costs of candidate and incumbent on the drawn traces."""
        return self.draft.costs.get(CANDIDATE), self.draft.costs.get(INCUMBENT)

    def _awaiting_approval(self, decision: GateDecision) -> tuple[Verdict, str]:
        """Return the verdict with its reason, of which the approval is a part if a person has to give it."""
        if decision.verdict is not Verdict.PROMOTED:
            return decision.verdict, decision.reason
        saved = saving(*self._costs, self.config.objective.min_saving) if decision.not_worse else None
        reason = f"{decision.reason}; {saved}" if saved else decision.reason
        return self._allowed(reason)

    def _allowed(self, reason: str) -> tuple[Verdict, str]:
        """Return what the tenant's mode allows for a version that passed the gate for this reason."""
        mode = self.config.mode_of(self.spec.name)
        ratio, limit = dollar_ratio(*self._costs), self.config.objective.max_cost_increase
        is_dear = ratio is not None and ratio > limit
        if is_dear:
            reason = (
                f"a decision costs {ratio:.1f} times as much, and objective.max_cost_increase is {limit:g}; {reason}"
            )
        if mode == "observe":
            return Verdict.WOULD_HAVE_PROMOTED, f"mode is observe; {reason}"
        if mode == "propose":
            return Verdict.AWAITING_APPROVAL, f"mode is propose; {reason}"
        return Verdict.AWAITING_APPROVAL if is_dear else Verdict.PROMOTED, reason

    def _observed(self) -> Manifest | None:
        """Return the version that would have been promoted, had the mode not been `observe`. None if there is none.

        Its proof holds only against the incumbent, the models and the labels of that time.
        """
        if self.config.mode_of(self.spec.name) == "observe":
            return None
        manifests, _ = self.artifacts.list_versions()
        observed = [manifest for manifest in manifests if manifest.verdict == Verdict.WOULD_HAVE_PROMOTED]
        newest = max(observed, key=lambda manifest: manifest.created_at, default=None)
        if newest is None or newest.parent != self.incumbent_version:
            return None
        if why := self._why_outdated(newest):
            self.notes.append(f"{newest.version} was observed to be better, and is not promoted, because {why}")
            return None
        return newest

    def _why_outdated(self, manifest: Manifest) -> str | None:
        """Say why an observed version has to be proven again; None if it need not."""
        retrain_after = self.config.retrain_after(self.spec.name)
        if retrain_after and retrain_after > manifest.created_at:
            return "the module is to be retrained"
        if self.job.window_end - manifest.window_end > timedelta(seconds=self.config.lookback_seconds):
            return "its traces are older than the lookback"
        if block := promotion_block_reason(self.artifacts, manifest.program_sha256):
            return block
        try:
            stored = self.artifacts.load(manifest.version)
            program = deserialize(self.spec, self.labels, stored, self.lm.models, encoder=self.job.encoder)
        except InvalidArtifact as e:
            return str(e)
        asked = self._names_of_models(program)
        return None if manifest.lm == asked else f"it was proven with {manifest.lm}, and would ask {asked}"

    def _promote_observed(self, observed: Manifest) -> Report:
        """Promote a version that was observed to be better, or propose it, without another search."""
        self.notes.append("no search was made, because this version was proven while the mode was observe")
        self.draft = replace(
            self.draft,
            optimizer=observed.optimizer,
            gate=self._decision_in(observed),
            costs=observed.costs,
        )
        verdict, reason = self._allowed(observed.reason.removeprefix("mode is observe; "))
        manifest = observed.model_copy(update={"verdict": verdict.value, "reason": reason})
        self.artifacts.record_result(manifest)
        return self._conclude(manifest, verdict, reason)

    def _names_of_models(self, program: dspy.Module) -> str:
        """The models that a program asks, as its manifest names them."""
        return ", ".join(self.lm.models[name].name for name in models_asked(program, self.lm.name))

    def _conclude(self, manifest: Manifest | None, verdict: Verdict, reason: str) -> Report:
        """Roll out a promoted version, unless the active version has changed meanwhile."""
        if manifest is None:
            raise InvalidArtifact(f"{self.spec.name}: the manifest of a version is missing", "restore it from a backup")
        active = self.incumbent_version
        if verdict is not Verdict.REJECTED:
            self._keep_answers(manifest.version, manifest.lm)
        if verdict is Verdict.PROMOTED:
            try:
                transition = roll_out(
                    self.artifacts,
                    manifest.version,
                    expected=self.incumbent_version,
                    actor=_actor(self.job.run_id),
                    reason=reason,
                    policy=self.config.rollout,
                )
                active = transition.to_version
                rollout = active_rollout(transition)
                if rollout and rollout.is_canary:
                    verdict, reason = Verdict.CANARY, f"{reason}; {_describe_canary(rollout)}"
            except PromotionConflict as e:
                verdict, reason = Verdict.STALE, str(e)
        self.draft = replace(self.draft, version=manifest.version, active_version=active)
        return self._report(verdict, reason)

    def _report(self, verdict: Verdict, reason: str) -> Report:
        self.log(f"{verdict.value}: {reason}")
        return replace(
            self.draft,
            verdict=verdict,
            reason=reason,
            notes=tuple(self.notes),
            teacher_calls=self.lm.meter.calls_by_role[Role.TEACHER],
            judge_calls=self.lm.meter.calls_by_role[Role.JUDGE],
            lm_calls=self.lm.meter.calls,
            lm_tokens=self.lm.meter.tokens,
            lm_input_tokens=self.lm.meter.input_tokens,
            lm_output_tokens=self.lm.meter.output_tokens,
            lm_cached_tokens=self.lm.meter.cached_tokens,
            lm_dollars=self.lm.meter.dollars,
            seconds=round(time.monotonic() - self.started, 2),
        )

    def _draft(self, built: ExampleSet, split: Split) -> Report:
        return Report(
            tenant_id=self.config.tenant_id,
            module=self.spec.name,
            verdict=Verdict.NOT_ENOUGH_DATA,
            reason="",
            window_start=self.job.window_start,
            window_end=self.job.window_end,
            decisions=len(self.job.decisions),
            examples=sizes(split) | {"redacted": built.redacted},
            provenance=dict(Counter(example.provenance.value for example in built.examples)),
            balance=dict(Counter(example.label for example in built.examples).most_common()),
            unusable=built.unusable,
            malformed=built.malformed,
            incumbent_version=self.incumbent_version,
            version=None,
            active_version=self.incumbent_version,
            lm=self.lm.name,
            other_lms=tuple(sorted(self.lm.others)),
            stand_in=self.lm.is_stand_in,
            teacher_lm=None if self.teacher.name == self.lm.name else self.teacher.name,
        )

    def _note_refused(self, part: ModuleSpec, error: InvalidArtifact) -> None:
        self.notes.append(f"{part.name} starts from its baseline: {error}")

    def _incumbent(self, start: dspy.Module) -> dspy.Module:
        """Return the active version's program, or `start` if there is none or it cannot serve.

        If the tenant no longer has the model that it names, its prompts are `retired`: they race, asked of others.
        """
        self.retired: dspy.Module | None = None
        if self.incumbent_version is None:
            return start
        try:
            stored = self.artifacts.load(self.incumbent_version)
            program = deserialize(self.spec, self.labels, stored, encoder=self.job.encoder)
            if not named_models(program) <= self.lm.models.keys():
                unnamed = stored.model_copy(update={"lms": {}})
                self.retired = deserialize(self.spec, self.labels, unnamed, encoder=self.job.encoder)
            check_models(stored, self.lm.models)
        except InvalidArtifact as e:
            self.notes.append(f"the active version cannot serve, so candidates are compared with the baseline: {e}")
            self.conditions = replace(self.conditions, incumbent=None)
            return start
        return program

    def _incumbent_name(self) -> str | None:
        """Return the active version or, for a composed module without one, the programs of its parts."""
        if self.incumbent_version or not self.job.parts:
            return self.incumbent_version
        return ", ".join(f"{name} {program.digest[:8]}" for name, program in sorted(self.job.parts.items()))

    def _undecided_canary(self) -> str | None:
        """Describe a canary that must be decided before another candidate is searched for. None if there is none."""
        rollout = self.rollout
        if rollout is None:
            return None
        self.artifacts.keep_indexed(rollout.transition.at)
        if not rollout.is_canary or not self.config.rollout.monitor:
            return None
        since = self.config.retrain_after(self.spec.name)
        return None if since and since > rollout.transition.at else _describe_canary(rollout)

    def _candidate_under_test(self) -> tuple[SequentialTest | None, dspy.Module | None]:
        """Return the open sequential test with its candidate's program, if there is one."""
        test = find_open_test(self.artifacts, self.conditions)
        if test is None:
            return None, None
        settings = self.config.modules.get(self.spec.name)
        lookback = timedelta(seconds=self.config.lookback_seconds)
        if settings and settings.retrain_after and settings.retrain_after > test.began:
            self.notes.append(f"the sequential test of {test.version} ends because the module is to be retrained")
        elif self.job.window_end - test.last_new > lookback:
            missing = "reviews of the drawn traces did not come" if test.drawn else "the lookback has no new traces"
            self.notes.append(f"the sequential test of {test.version} ends because {missing}")
        else:
            try:
                stored = self.artifacts.load(test.version)
                return test, deserialize(self.spec, self.labels, stored, self.lm.models, encoder=self.job.encoder)
            except InvalidArtifact as e:
                self.notes.append(f"the sequential test of {test.version} ends: {e}")
        return None, None

    def _without_quoted(self, split: Split, *programs: dspy.Module) -> Split:
        """Remove queries from the holdout that a compared program's instructions quote: they cannot judge."""
        instructions = [predictor.signature.instructions for program in programs for predictor in program.predictors()]

        def quoted(judged: HoldoutExample) -> bool:
            return any(quotes(text, query) for query in judged.group for text in instructions)

        usable = replace(
            split,
            holdout=tuple(judged for judged in split.holdout if not quoted(judged)),
            guard=tuple(judged for judged in split.guard if not quoted(judged)),
            drawable=tuple(judged for judged in split.drawable if not quoted(judged)),
        )
        if lost := len(split.holdout) + len(split.guard) - len(usable.holdout) - len(usable.guard):
            self.notes.append(f"{lost} held-out queries were left out because a program's instructions quote them")
        return usable

    def _charge(self, candidate: Program, drawn: Sequence[HoldoutExample]) -> tuple[LedgerEntry, bool]:
        """Enter a test in the ledger before it begins. Also return whether this attempt had entered it before."""
        holdout_digest = digest_of([held_out.example for held_out in drawn])
        for _ in range(_LEDGER_TRIES):
            entries = self.artifacts.ledger()
            charge = next_charge(
                entries,
                attempt=f"{self.job.attempt or self.job.run_id} {self.lm.name}",
                epoch=self.epoch,
                at=self.job.window_end,
                candidate_digest=candidate.digest,
                holdout_digest=holdout_digest,
                incumbent=self.conditions.incumbent,
            )
            if (repeated := charge in entries) or self.artifacts.charge(charge):
                return charge, repeated
        raise PromotionConflict(
            f"{self.artifacts.tenant_id}/{self.artifacts.module}: other runs keep taking the next place in the ledger",
            "wait until they have finished",
        )

    def _measured(self, decision: GateDecision, verdict: Verdict, reason: str) -> dict[str, Any]:
        """The fields of a manifest that a decision sets."""
        return {
            "verdict": verdict.value,
            "reason": reason,
            **({"costs": dict(self.draft.costs)} if CANDIDATE in self.draft.costs else {}),
            "judged_by": dict(Counter(row.example.provenance.value for row in self.draft.compared)),
            "incumbent_score": decision.comparison.incumbent_score,
            "candidate_score": decision.comparison.candidate_score,
            "gate": decision.numbers,
        }

    def _manifest(self, finalist: Finalist, decision: GateDecision, verdict: Verdict, reason: str) -> Manifest:
        asked = [self.lm.models[name] for name in models_asked(finalist.program, self.lm.name)]
        return Manifest(
            **program_facts(finalist.stored, self.job.window_end),
            **self._measured(decision, verdict, reason),
            run_id=self.job.run_id,
            parent=self.incumbent_version,
            window_start=self.job.window_start,
            window_end=self.job.window_end,
            examples=self.draft.examples,
            provenance=self.draft.provenance,
            optimizer=finalist.optimizer,
            tried=[tried.as_dict() for tried in self.draft.tried],
            seed=SEED,
            lm=self._names_of_models(finalist.program),
            lm_settings=dict(asked[0].endpoint.values) if len(asked) == 1 and asked[0].endpoint else {},
            teacher_lm=self.draft.teacher_lm,
            judge_lm=self.draft.judge_lm,
            stand_in=any(model.is_stand_in for model in asked),
            lm_calls=self.lm.meter.calls,
            lm_tokens=self.lm.meter.tokens,
            lm_input_tokens=self.lm.meter.input_tokens,
            lm_output_tokens=self.lm.meter.output_tokens,
            lm_cached_tokens=self.lm.meter.cached_tokens,
            lm_dollars=self.lm.meter.dollars,
            unread={program: dict(counts) for program, counts in self.draft.unread.items()},
        )


def _racing(lm: MeteredLM, labeller: MeteredLM | None) -> list[MeteredLM]:
    """Return the candidate models that race. One that labels dev does not, because it always agrees with itself."""
    return [other for other in lm.others.values() if labeller is None or other.name != labeller.name]


def _actor(run_id: str) -> str:
    """Return the actor of a run's transitions."""
    return f"run {run_id}"


def _describe_canary(rollout: Rollout) -> str:
    return (
        f"{rollout.version} has had {100 * rollout.fraction:.4g} % of the requests since "
        f"{rollout.transition.at:%Y-%m-%d %H:%M} UTC, and becomes active "
        + ("if its outcomes prove it better" if rollout.proving_alpha else "unless it is clearly worse")
    )


@dataclass(frozen=True)
class _BatchStep:
    """The decision with a new batch, and how to record it with the verdict that follows."""

    decision: GateDecision
    append: Callable[[Verdict], None]


def _missing_data(split: Split) -> tuple[Verdict, str] | None:
    """Return the verdict and reason if there are not enough examples."""
    if len(split.train) < MIN_TRAIN or len(split.dev) < MIN_DEV:
        return (
            Verdict.NOT_ENOUGH_DATA,
            f"{len(split.train)} of {MIN_TRAIN} training and {len(split.dev)} of {MIN_DEV} dev examples",
        )
    held_out = max(len(split.holdout), len(split.drawable))
    if held_out < MIN_HOLDOUT:
        return Verdict.NOT_ENOUGH_DATA, f"{held_out} of {MIN_HOLDOUT} holdout examples"
    return None


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


def _held_out(split: Split) -> list[Example]:
    """The held-out examples that a replay may ask for the first time."""
    return [held_out.example for held_out in split.drawable or split.holdout]
