"""The report of an optimization, as plain values."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import dspy

from autoopt_pipeline.evaluation.calibration import Bin, reliability
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.gate import GateDecision
from autoopt_pipeline.evaluation.runner import Answer
from autoopt_pipeline.evaluation.split import Split
from autoopt_pipeline.modules.cascade import cascades_in
from autoopt_pipeline.modules.named_model import named_model
from autoopt_pipeline.modules.spec import Example
from autoopt_pipeline.registry.module_versions import ModuleVersions, describe_router
from autoopt_pipeline.registry.program_cost import ProgramCost
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.serialization import demo_query, instantiate

NO_ANSWER = "(no valid answer)"

OWN_MODEL = "the tenant's own"


@dataclass(frozen=True)
class CandidateStats:
    """One optimizer's program: its result in the race, and the LM calls for making and judging it.

    `dev_score` (0 to 1) is its score on the `judged_on` dev examples that it was asked before it was dropped.
    `dropped_after` is None for the finalist. `unread` counts answers that could not be scored, by reason, and
    `cost` is that of its decisions.
    """

    optimizer: str
    dev_score: float
    judged_on: int
    making_calls: int
    judging_calls: int
    dropped_after: int | None
    unread: Mapping[str, int] = field(default_factory=dict)
    cost: ProgramCost | None = None

    @property
    def lm_calls(self) -> int:
        return self.making_calls + self.judging_calls

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"cost": self.cost.model_dump() if self.cost else None}


@dataclass(frozen=True)
class ComparedExample:
    """One holdout example with the answers of both programs."""

    example: Example
    incumbent: Answer
    candidate: Answer
    case: PairedCase


@dataclass(frozen=True)
class Change:
    """The difference between one predictor, its model or one local router of the candidate and of the incumbent.

    Demos have the form `query -> answer`; for a model or a router, `demos` is None, and what is added or dropped is its
    name or description. `instructions` is a line-wise difference, empty if they are the same.
    """

    predictor: str
    demos: int | None
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    instructions: str

    @property
    def summary(self) -> str:
        if self.demos is None:
            return "changed" if self.added and self.dropped else "new" if self.added else "dropped"
        return f"{self.demos} demos, {len(self.added)} of them new, {len(self.dropped)} dropped"


@dataclass(frozen=True)
class Report:
    """Everything that a person may want to know about one optimization.

    `unusable` counts the decisions that give no example, by reason, and `malformed` those that could not be read.
    `unread` counts the answers that could not be scored, by program and reason, and `costs` has what a decision of each
    program costs: on the holdout, or if that was not used, on the dev examples. `lm` is the tenant's own model,
    `other_lms` are its candidate models, and `program_lms` has the models that each compared program asks. `lm_dollars`
    is None if it is unknown. `estimate` is what a search was expected to use: `lm_calls`, `lm_tokens` and `lm_dollars`.
    `reviews_needed` is how many more reviews can decide at the soonest.
    """

    tenant_id: str
    module: str
    verdict: Verdict
    reason: str
    window_start: datetime
    window_end: datetime
    decisions: int
    examples: dict[str, int]
    provenance: dict[str, int]
    balance: dict[str, int]
    unusable: dict[str, int]
    incumbent_version: str | None
    version: str | None
    active_version: str | None
    lm: str
    stand_in: bool
    malformed: int = 0
    other_lms: tuple[str, ...] = ()
    program_lms: Mapping[str, str] = field(default_factory=dict)
    teacher_lm: str | None = None
    teacher_calls: int = 0
    judge_lm: str | None = None
    judge_calls: int = 0
    lm_calls: int = 0
    lm_tokens: int = 0
    lm_input_tokens: int = 0
    lm_output_tokens: int = 0
    lm_cached_tokens: int = 0
    lm_dollars: float | None = None
    seconds: float = 0.0
    estimate: Mapping[str, float] = field(default_factory=dict)
    tried: tuple[CandidateStats, ...] = ()
    incumbent_dev_score: float | None = None
    optimizer: str | None = None
    gate: GateDecision | None = None
    reviews_needed: int = 0
    compared: tuple[ComparedExample, ...] = ()
    unread: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    costs: Mapping[str, ProgramCost] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fixed(self) -> list[ComparedExample]:
        return [row for row in self.compared if row.case.fixed]

    @property
    def broken(self) -> list[ComparedExample]:
        return [row for row in self.compared if row.case.broken]

    @property
    def confusion(self) -> dict[str, dict[str, int]]:
        """Counts by right label, then by the candidate's label."""
        table: dict[str, Counter[str]] = {}
        for row in self.compared:
            table.setdefault(row.case.label, Counter())[row.case.candidate.label or NO_ANSWER] += 1
        return {label: dict(sorted(counts.items())) for label, counts in sorted(table.items())}

    @property
    def reliability(self) -> tuple[Bin, ...]:
        """The candidate's confidence compared with its scores, in bins."""
        return reliability([row.case.candidate for row in self.compared])


def sizes(split: Split) -> dict[str, int]:
    return {
        "train": len(split.train),
        "dev": len(split.dev),
        "holdout": len(split.holdout),
        "guard": len(split.guard),
        "duplicates": split.duplicates,
        "near_duplicates": split.near_duplicates,
        "dropped": split.dropped_to_protect_holdout,
        "shown": split.shown,
    }


def compared(
    examples: Sequence[Example],
    before: Sequence[Answer],
    after: Sequence[Answer],
    grades: tuple[Sequence[ScoredAnswer], Sequence[ScoredAnswer]],
) -> list[ComparedExample]:
    """Pair the answers of incumbent and candidate by example."""
    return [
        ComparedExample(example, old, new, PairedCase(example.label, old_grade, new_grade))
        for example, old, new, old_grade, new_grade in zip(examples, before, after, *grades, strict=True)
    ]


def changes_between(incumbent: dspy.Module, candidate: dspy.Module) -> tuple[Change, ...]:
    """Return the differences in what both programs show the model, by predictor."""
    before = dict(incumbent.named_predictors())
    changes = []
    for name, predictor in candidate.named_predictors():
        old_demos, new_demos = _demos(before[name].signature, before[name]), _demos(predictor.signature, predictor)
        old, new = before[name].signature.instructions, predictor.signature.instructions
        # The first two lines are a header. Without context, lines that are not changes begin with @@.
        difference = [*difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)][2:]
        changes.append(
            Change(
                predictor=name,
                demos=len(new_demos),
                added=tuple(demo for demo in new_demos if demo not in old_demos),
                dropped=tuple(demo for demo in old_demos if demo not in new_demos),
                instructions="\n".join(line for line in difference if line.startswith(("+", "-"))),
            )
        )
    return (*changes, *_model_changes(incumbent, candidate), *_router_changes(incumbent, candidate))


def _model_changes(incumbent: dspy.Module, candidate: dspy.Module) -> Iterator[Change]:
    before = dict(incumbent.named_predictors())
    for name, predictor in candidate.named_predictors():
        old, new = (named_model(each.signature) or OWN_MODEL for each in (before[name], predictor))
        if old != new:
            yield Change(f"language model of {name}", None, (new,), (old,), "")


def _router_changes(incumbent: dspy.Module, candidate: dspy.Module) -> Iterator[Change]:
    old, new = (
        {
            each.module: describe_router(
                each.threshold,
                each.router.classes,
                each.sources,
                each.router.encoder.sha256 if each.router.encoder else None,
            )
            for each in cascades_in(program)
        }
        for program in (incumbent, candidate)
    )
    for module in sorted(old.keys() | new.keys()):
        dropped, added = ((side[module],) if module in side else () for side in (old, new))
        if dropped != added:
            yield Change(f"local router of {module}", None, added, dropped, "")


def changes_of_versions(programs: ModuleVersions, before: str | None, after: str | None) -> tuple[Change, ...]:
    """Return the differences between two stored versions, where None is the module's baseline.

    The baseline of a composed module is without the programs of its parts. Raises `InvalidArtifact` if a version cannot
    be read.
    """
    stored = {name: programs.artifacts.load(name) for name in (before, after) if name}
    # The labels of both, so that no demo is left out because one version lacks its label.
    labels = list(dict.fromkeys(label for program in stored.values() for label in program.labels))
    module = programs.artifacts.module
    older, newer = (instantiate(stored[name] if name else None, module, labels) for name in (before, after))
    return changes_between(older, newer)


def _demos(signature: type[dspy.Signature], predictor: dspy.Predict) -> list[str]:
    """Return demos as `query -> answer`, without reasoning and confidence."""
    deciding = [name for name in signature.output_fields if name not in {"reasoning", "confidence"}]
    return [
        f"{demo_query(signature, demo)} -> {', '.join(str(demo.get(name)) for name in deciding)}"
        for demo in predictor.demos
    ]
