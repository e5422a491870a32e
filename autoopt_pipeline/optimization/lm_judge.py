"""A judge: a language model that says what is right where two programs disagree, before people do.

Its word never proves a candidate by itself. In the mode `assist` people are asked about every disagreement all the
same. In the mode `calibrated` they are spared some of them, once the judge has agreed with people often enough.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import dspy

from autoopt_pipeline.evaluation.cases import Judged, PairedCase
from autoopt_pipeline.evaluation.judge_agreement import agreement_with
from autoopt_pipeline.evaluation.runner import answer_all, grade_both
from autoopt_pipeline.evaluation.sequential_test import ASKED
from autoopt_pipeline.evaluation.sequential_test_log import SequentialTest, stored_case
from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.lm.metering import BudgetExhausted
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.answer_format import in_format
from autoopt_pipeline.modules.spec import Example, ModuleSpec, Provenance
from autoopt_pipeline.optimization.job import ModuleRun
from autoopt_pipeline.optimization.report import ComparedExample
from autoopt_pipeline.optimization.report_draft import ReportDraft
from autoopt_pipeline.registry.records import DrawnTrace


def judge_disagreements(
    run: ModuleRun,
    draft: ReportDraft,
    test: SequentialTest,
    traces: Sequence[DrawnTrace],
    rows: Sequence[ComparedExample],
    *,
    known: int,
) -> list[DrawnTrace]:
    """Let the judge answer the disagreements that had no label, and choose those that people are asked about.

    A test has one form from its first traces on: only one that has spared reviews before may spare any more.
    """
    judge, spec, config = run.lm_judge, run.spec, run.config
    if judge is None or config.evidence_for(spec.name) == "live":
        return list(traces)
    by_span = {row.example.span_id: row for row in rows}
    asked = [by_span[trace.span_id] for trace in traces if not trace.alike][known:]
    asked_spans = {row.example.span_id for row in asked}
    try:
        with run.tracker.phase("judge on disagreements", len(asked)) as answered:
            examples = [row.example for row in asked]
            labelled = judge_answers(judge, spec, spec.build_program(run.labels), examples, answered=answered)
    except BudgetExhausted:
        draft.notes.append("the budget was spent before the judge had answered, so people judge all disagreements")
        return list(traces)
    agreement = agreement_with(judge.name, run.artifacts.sequential_test_steps())
    spares = (
        config.judge is not None
        and config.judge.mode == "calibrated"
        and agreement.may_spare_reviews
        and (test.is_new or any(batch.spares_reviews for batch in test.batches))
    )
    cases = judged_cases(spec, asked, labelled, spares=spares, seed=test.version)
    judged = [
        trace.model_copy(update={"judged": stored_case(cases[trace.span_id]) if trace.span_id in cases else None})
        for trace in traces
    ]
    left = sum(trace.is_asked for trace in judged if trace.span_id in asked_spans)
    if unread := len(asked) - len(cases):
        draft.notes.append(f"{unread} of {len(asked)} answers of {judge.name} could not be read")
    draft.add(judge_lm=judge.name)
    draft.notes.append(
        f"{judge.name} judged {len(cases)} disagreements, and people are asked about {left}: {agreement}"
    )
    return judged


def judge_answers(
    judge: MeteredLM,
    spec: ModuleSpec,
    program: dspy.Module,
    examples: Sequence[Example],
    *,
    answered: Callable[[], None] = lambda: None,
) -> list[Example | None]:
    """Return each example with the judge's answer as its label, None where that cannot be read.

    `program` asks the judge, without demos, in the judge's answer format if that is set. Raises as `answer_all` does.
    """
    asking = program if judge.answer_format == "auto" else in_format(program, judge.answer_format)
    answers = answer_all(spec, asking, examples, judge, answered=answered)
    return [
        None
        if answer.values is None
        else replace(example, right=dict(answer.values), label=spec.label(answer.values), provenance=Provenance.JUDGE)
        for example, answer in zip(examples, answers, strict=True)
    ]


def judged_cases(
    spec: ModuleSpec,
    rows: Sequence[ComparedExample],
    labelled: Sequence[Example | None],
    *,
    spares: bool,
    seed: str,
) -> dict[str, PairedCase]:
    """Return the disagreements as the judge sees them, by span, without those on which its answer cannot be read.

    Where it `spares` people reviews, they are asked about a random part of the cases, and not about those that the
    judge gives to the incumbent: these count as lost, so to believe the judge there can cost a promotion and never make
    one.
    """
    cases = {}
    for row, example in zip(rows, labelled, strict=True):
        if example is None:
            continue
        case = grade_both(spec, example, row.incumbent, row.candidate)
        share = 1.0 if not spares else 0.0 if case.difference < 0 else ASKED
        asked = unit_interval(f"{seed} asked {row.example.span_id}") < share
        cases[row.example.span_id] = replace(case, judged=Judged(case.difference, share, asked))
    return cases
