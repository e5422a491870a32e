"""Lets the teacher label the dev examples if too few have a review.

The application's own answers agree with the program that gave them, right or wrong. A candidate can hardly beat that
program on them. A stronger model's answers can be wrong, too, but not in the incumbent's favour. They only choose the
finalist, and never prove it.
"""

from dataclasses import replace

from autoopt_pipeline.evaluation.split import Split
from autoopt_pipeline.lm.metering import BudgetExhausted
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.named_model import named_models
from autoopt_pipeline.modules.spec import Provenance
from autoopt_pipeline.optimization.job import ModuleRun
from autoopt_pipeline.optimization.lm_judge import judge_answers
from autoopt_pipeline.optimization.preparation import MAX_DEV, Prepared
from autoopt_pipeline.optimization.report_draft import ReportDraft
from autoopt_pipeline.optimization.search import MIN_DEV, budget_too_small, reviewed_dev


def labeller_of(run: ModuleRun, prepared: Prepared) -> MeteredLM | None:
    """Return the judge or the teacher if it labels dev: too few examples are reviewed, and others answer."""
    labeller = run.lm_judge or run.teacher
    answering = {run.lm.name, *named_models(prepared.incumbent.program)}
    too_few = len(reviewed_dev(prepared.split)) < MIN_DEV
    return labeller if labeller.name not in answering and too_few else None


def with_labelled_dev(run: ModuleRun, draft: ReportDraft, split: Split, labeller: MeteredLM | None) -> Split:
    """Return the split with a model's answers as labels of the dev requests that nobody has reviewed.

    The module's baseline asks the model, without demos. Requests of which the application's answer is not known to be
    right are asked about, too. Answers that cannot be read label nothing. Raises as `answer_all` does, and
    `BudgetTooSmall`.
    """
    if labeller is None:
        return split
    reviewed, program = reviewed_dev(split), run.spec.build_program(run.labels)
    asked = split.dev_requests[: MAX_DEV - len(reviewed)]
    try:
        with run.tracker.phase("labels of dev", len(asked)) as answered:
            answers = judge_answers(labeller, run.spec, program, asked, answered=answered)
    except BudgetExhausted as e:
        raise budget_too_small(run.config, str(e)) from None
    dev = (*reviewed, *(example for example in answers if example))
    count = sum(example.provenance is Provenance.JUDGE for example in dev)
    draft.notes.append(f"{labeller.name} labelled {count} dev examples that nobody has reviewed")
    return replace(split, dev=dev) if len(dev) >= MIN_DEV else split
