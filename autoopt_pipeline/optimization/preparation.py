"""What a run starts from: its examples, the incumbent, and the open sequential test. Nothing here asks a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import dspy

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.evaluation.gate import MIN_HOLDOUT
from autoopt_pipeline.evaluation.sequential_test import MAX_BATCH
from autoopt_pipeline.evaluation.sequential_test_log import SequentialTest, SequentialTestConditions, find_open_test
from autoopt_pipeline.evaluation.split import Split, split_examples
from autoopt_pipeline.modules.answer_format import CHAT, in_format
from autoopt_pipeline.modules.named_model import named_models
from autoopt_pipeline.modules.spec import Example, ModuleSpec
from autoopt_pipeline.optimization.holdout import known_queries
from autoopt_pipeline.optimization.job import ModuleRun
from autoopt_pipeline.optimization.report import sizes
from autoopt_pipeline.optimization.report_draft import ReportDraft, first_report
from autoopt_pipeline.optimization.search import MIN_DEV
from autoopt_pipeline.registry.records import Program, Transition, Verdict, check_models
from autoopt_pipeline.registry.serialization import compose, deserialize
from autoopt_pipeline.registry.transitions import Rollout, active_rollout

# Fewest training examples for a search.
MIN_TRAIN = 20

# Most examples that are used: the newest. More would hardly improve the verdict, and cost two calls each.
MAX_TRAIN, MAX_DEV, MAX_HOLDOUT = 2000, 100, MAX_BATCH


@dataclass(frozen=True)
class Incumbent:
    """The active version's program, or the start if there is none or it cannot serve.

    `name` is that of the `SequentialTestConditions`, and None for a version that cannot serve. If the tenant no longer
    has the model that the version names, its prompts are `retired`: they race, asked of others.
    """

    version: str | None
    name: str | None
    program: dspy.Module
    retired: dspy.Module | None = None

    @property
    def cannot_serve(self) -> bool:
        return self.version is not None and self.name is None


@dataclass(frozen=True)
class CandidateUnderTest:
    """The candidate of the open sequential test."""

    test: SequentialTest
    program: dspy.Module


@dataclass(frozen=True)
class Prepared:
    """What a run starts from.

    `served` is what serves without a version, and programs are made from `start`, which is `served` in the answer
    format that the tenant chose. `requests` are the examples of all decisions that can be read. `steps_seen` is the
    last step of any sequential test when the run began.
    """

    transitions: Sequence[Transition]
    steps_seen: int
    incumbent: Incumbent
    conditions: SequentialTestConditions
    served: dspy.Module
    start: dspy.Module
    requests: Sequence[Example]
    split: Split
    under_test: CandidateUnderTest | None

    @property
    def epoch(self) -> int:
        """How often the alpha budget has started anew."""
        return sum(transition.resets_alpha_budget for transition in self.transitions)

    @property
    def rollout(self) -> Rollout | None:
        return active_rollout(self.transitions[-1] if self.transitions else None)

    @property
    def held_out(self) -> list[Example]:
        """The held-out examples that a replay may ask for the first time."""
        return [held_out.example for held_out in self.split.drawable or self.split.holdout]


def prepare(run: ModuleRun) -> tuple[Prepared, ReportDraft]:
    """Read what a run starts from, and begin its report. Asks no model, and writes nothing."""
    job, spec, labels, lm = run.job, run.spec, run.labels, run.lm
    active, transitions = run.artifacts.active(), run.artifacts.transitions()
    steps_seen = run.artifacts.last_sequential_test_step()
    version = active.version if active else None
    notes: list[str] = []

    def note_refused(part: ModuleSpec, error: InvalidArtifact) -> None:
        notes.append(f"{part.name} starts from its baseline: {error}")

    learnable = [decision for decision in job.decisions if decision.time >= job.window_start]
    built = spec.build_examples(labels, learnable, job.redact)
    chosen = None if lm.answer_format == "auto" else lm.answer_format
    served = compose(spec, labels, job.parts, note_refused, chosen or CHAT, lm.models, encoder=job.encoder)
    requests = spec.build_requests(labels, learnable, job.redact)
    incumbent = _incumbent(run, version, served, notes)
    start = in_format(served, chosen) if chosen else served
    conditions = SequentialTestConditions(incumbent.name, lm.name, tuple(label.name for label in labels))
    under_test = _candidate_under_test(run, conditions, notes)
    programs = (incumbent.program, start, under_test.program if under_test else None, incumbent.retired)
    split = split_examples(
        built.examples,
        requests,
        max_holdout=MAX_HOLDOUT,
        max_dev=MAX_DEV,
        max_train=MAX_TRAIN,
        shown=known_queries(built, [program for program in programs if program]),
    )
    draft = ReportDraft(run, first_report(run, built, split, version), notes)
    run.log(f"{len(learnable)} decisions -> {len(built.examples)} examples: {_listed(sizes(split))}")
    prepared = Prepared(transitions, steps_seen, incumbent, conditions, served, start, requests, split, under_test)
    return prepared, draft


def missing_data(split: Split) -> tuple[Verdict, str] | None:
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


def _incumbent(run: ModuleRun, version: str | None, start: dspy.Module, notes: list[str]) -> Incumbent:
    if version is None:
        return Incumbent(None, _names_of_parts(run.job.parts), start)
    retired: dspy.Module | None = None
    try:
        stored = run.artifacts.load(version)
        program = deserialize(run.spec, run.labels, stored, encoder=run.job.encoder)
        if not named_models(program) <= run.lm.models.keys():
            unnamed = stored.model_copy(update={"lms": {}})
            retired = deserialize(run.spec, run.labels, unnamed, encoder=run.job.encoder)
        check_models(stored, run.lm.models)
    except InvalidArtifact as e:
        notes.append(f"the active version cannot serve, so candidates are compared with the baseline: {e}")
        return Incumbent(version, None, start, retired)
    return Incumbent(version, version, program, retired)


def _names_of_parts(parts: Mapping[str, Program]) -> str | None:
    """Return the programs of a composed module's parts, which is its incumbent without a version."""
    return ", ".join(f"{name} {program.digest[:8]}" for name, program in sorted(parts.items())) or None


def _candidate_under_test(
    run: ModuleRun, conditions: SequentialTestConditions, notes: list[str]
) -> CandidateUnderTest | None:
    """Return the candidate of the open sequential test, unless the test ends now."""
    test = find_open_test(run.artifacts, conditions)
    if test is None:
        return None
    retrain_after = run.config.retrain_after(run.spec.name)
    if retrain_after and retrain_after > test.began:
        notes.append(f"the sequential test of {test.version} ends because the module is to be retrained")
    elif run.job.window_end - test.last_new > timedelta(seconds=run.config.lookback_seconds):
        missing = "reviews of the drawn traces did not come" if test.drawn else "the lookback has no new traces"
        notes.append(f"the sequential test of {test.version} ends because {missing}")
    else:
        try:
            stored = run.artifacts.load(test.version)
            program = deserialize(run.spec, run.labels, stored, run.lm.models, encoder=run.job.encoder)
            return CandidateUnderTest(test, program)
        except InvalidArtifact as e:
            notes.append(f"the sequential test of {test.version} ends: {e}")
    return None


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
