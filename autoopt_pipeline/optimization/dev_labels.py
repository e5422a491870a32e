"""Lets the teacher label the dev examples if too few have a review.

The application's own answers agree with the program that gave them, right or wrong. A candidate can hardly beat that
program on them. A stronger model's answers can be wrong, too, but not in the incumbent's favour. They only choose the
finalist, and never prove it.
"""

from collections.abc import Callable
from dataclasses import replace

import dspy

from autoopt_pipeline.evaluation.split import Split
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.optimization.lm_judge import judge_answers
from autoopt_pipeline.optimization.search import MIN_DEV, reviewed_dev


def needs_labels(split: Split) -> bool:
    """Whether the reviewed dev examples are too few to choose by."""
    return len(reviewed_dev(split)) < MIN_DEV


def labelled_by(
    labeller: MeteredLM,
    spec: ModuleSpec,
    split: Split,
    program: dspy.Module,
    *,
    most: int,
    answered: Callable[[], None] = lambda: None,
) -> Split:
    """Return the split with a model's answers as labels of the dev requests that nobody has reviewed.

    `program` asks the model, without demos. Requests of which the application's answer is not known to be right are
    asked about, too. Answers that cannot be read label nothing. Raises as `answer_all` does.
    """
    reviewed = reviewed_dev(split)
    asked = split.dev_requests[: most - len(reviewed)]
    answers = judge_answers(labeller, spec, program, asked, answered=answered)
    return replace(split, dev=(*reviewed, *(example for example in answers if example)))
